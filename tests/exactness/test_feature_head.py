"""Feature heads: the answers stay the target's own, and the head computes in the engine what it computes in one go.

The second is the harder test: the head's K/V live in vLLM's blocks, are fed late, in chunks, after preemption, and are
shared by prefix. Whatever the way, what it proposes must be what a plain pass over the whole text proposes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, EngineArgs, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.plain_pass import check, pictures_by_hash, recorded
from tests.exactness.test_identity import plain, play
from tests.tiny.checkpoints import build
from tests.tiny.heads import build_head
from tests.tiny.prompts import prompts
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.feature_drafter import FeatureDrafter

COMPRESSORS = {
    "select": CompressorConfig(),
    "pool": CompressorConfig(kind="pool", ratio=4),
    "prune": CompressorConfig(kind="prune", ratio=4),
    "conv": CompressorConfig(kind="conv", ratio=3),
    "resampler": CompressorConfig(kind="resampler", queries=2),
    "global": CompressorConfig(kind="global"),
    "weight": CompressorConfig(kind="weight"),
    "concat": CompressorConfig(kind="concat"),
    "none": CompressorConfig(kind="none"),
}
POOL = COMPRESSORS["pool"]


def with_head(family: str, compressor: CompressorConfig, scenario: Scenario, **more: Any) -> LLM:
    network = {key: more.pop(key) for key in ("fusion", "feature_layers", "vocabulary") if key in more}
    head = build_head(family, compressor, **network)
    return engine(target_of(family), {"model": str(head), "num_speculative_tokens": 12, **more}, **scenario.options)


def slow(*values: Any) -> Any:
    """The same road as another case, in another family or with another module."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "scenario"),
    [
        *(("llava", scenario) for scenario in SCENARIOS),
        ("qwen2_5_vl", SCENARIOS[1]),
        *(slow("qwen2_5_vl", SCENARIOS[i]) for i in (0, 2, 3, 4)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_identity(family: str, scenario: Scenario) -> None:
    llm = with_head(family, COMPRESSORS["select"], scenario)
    before = tally(llm)
    assert play(llm, scenario, family) == plain(family, scenario)
    after = tally(llm)
    assert after["drafter_failures"] == 0
    assert after["accepted"] - before["accepted"] > 20, "no drafts were accepted"


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("llava", kind) for kind in ("none", "global", "select")),
        *(slow("llava", kind) for kind in ("pool", "prune", "conv", "resampler", "weight", "concat")),
        *(slow("qwen2_5_vl", kind) for kind in COMPRESSORS if kind != "select"),
    ],
)
def test_identity_with_every_compressor(family: str, kind: str) -> None:
    scenario = SCENARIOS[1]
    llm = with_head(family, COMPRESSORS[kind], scenario)
    assert play(llm, scenario, family) == plain(family, scenario)
    counted = tally(llm)
    assert counted["drafter_failures"] == 0 and counted["accepted"] > 20
    assert sum(counted["compressions"].values()) > 0


@pytest.mark.parametrize(
    ("family", "scenario"),
    [
        ("llava", SCENARIOS[1]),
        ("llava", SCENARIOS[2]),
        ("qwen2_5_vl", SCENARIOS[1]),
        slow("llava", SCENARIOS[0]),
        slow("qwen2_5_vl", SCENARIOS[0]),
        slow("qwen2_5_vl", SCENARIOS[2]),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_engine_and_plain_pass_agree(family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = with_head(family, POOL, scenario, tree="chain", num_speculative_tokens=4)
    images = pictures_by_hash(llm, family)
    with recorded(llm, monkeypatch) as recorder:
        play(llm, scenario, family)
    assert tally(llm)["drafter_failures"] == 0
    assert check(recorder, family, images) > 40
    assert {len(seen.drafted) for seen in recorder.seen} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "network",
    [
        {"fusion": "wide", "feature_layers": (0, 1)},
        {"fusion": "linear", "feature_layers": (0, 1)},
        {"vocabulary": None},
        {"compressor": "global"},
        {"compressor": "global", "queries": 40},  # more than a picture has tokens: it takes all of its slots
        {"compressor": "text"},
        slow({"compressor": "none"}),
        slow({"compressor": "select"}),
    ],
    ids=str,
)
def test_other_networks(network: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, more = SCENARIOS[1], dict(network)
    compressor = CompressorConfig(kind=more.pop("compressor", "pool"), queries=more.pop("queries", 0))
    if compressor.kind == "text":
        more["text_only_draft"] = True
    llm = with_head("llava", compressor, scenario, tree="chain", num_speculative_tokens=4, **more)
    images = pictures_by_hash(llm, "llava")
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, scenario, "llava") == plain("llava", scenario)
    assert tally(llm)["drafter_failures"] == 0
    if compressor.kind != "text":  # a blind head's reference would need its holes as pictures
        assert check(recorder, "llava", images) > 40


def test_control_wrong_features_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features shifted by one position: the answers stay, the comparison fails."""
    scenario = SCENARIOS[0]
    llm = with_head("llava", POOL, scenario, tree="chain", num_speculative_tokens=4)
    images = pictures_by_hash(llm, "llava")
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, FeatureDrafter)
    keep = drafter.keep_features
    monkeypatch.setattr(drafter, "keep_features", lambda confirmed, hidden: keep(confirmed, hidden.roll(1, 0)))
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, scenario, "llava") == plain("llava", scenario)
    with pytest.raises(AssertionError):
        check(recorder, "llava", images)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llava", "pool"),
        slow("qwen2_5_vl", "pool"),
        *(slow("llava", kind) for kind in ("select", "global", "resampler", "none")),
    ],
)
def test_turns_with_speculation_off_in_between(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn 2 is decoded plainly (given log-probs); in turn 3 its features are gone, save those just computed."""
    scenario = SCENARIOS[0]
    llm = ours = with_head(family, COMPRESSORS[kind], scenario)
    accepted: list[int] = []

    def turns(llm: LLM) -> list[Any]:
        asked, said = prompts(family)[:4], []
        for turn in range(3):
            given = [40, 41] if turn == 1 else None
            params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprob_token_ids=given)
            outputs = answers(llm, asked, params)
            said.append(tokens(outputs))
            accepted.append(tally(llm)["accepted"] if llm is ours else 0)
            asked = [p.follow_up(o.outputs[0].text, "go on") for p, o in zip(asked, outputs, strict=True)]
        return said

    before = tally(llm)
    accepted.clear()
    assert turns(llm) == turns(engine(target_of(family)))
    assert tally(llm)["drafter_failures"] == 0
    first, plain_turn, third = accepted[:3]
    assert first - before["accepted"] > 10 and plain_turn == first and third > plain_turn


def test_features_are_dropped_at_their_bound() -> None:
    """No room for features: no drafts, the answers stay."""
    scenario = SCENARIOS[0]
    llm = with_head("llava", POOL, scenario, feature_cache_mib=0)
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    counted = tally(llm)
    assert counted["trees"] == 0 and counted["drafter_failures"] == 0


def test_sampled_requests_are_plain_vllms_own_with_any_tree() -> None:
    """The text is a function of the seed and the target's law, whatever the head proposes."""
    params = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True, seed=5)
    scenario = SCENARIOS[0]
    trees = with_head("llava", POOL, scenario)
    chain = with_head("llava", COMPRESSORS["none"], scenario, tree="chain", num_speculative_tokens=3)
    said = [tokens(answers(llm, prompts("llava"), params)) for llm in (trees, chain)]
    assert said[0] == said[1]


@pytest.mark.parametrize("method", ["keep_features", "keep_pictures", "open", "propose_level"])
def test_a_head_that_raises_is_switched_off(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = SCENARIOS[0]
    llm = with_head("llava", POOL, scenario)
    speculator = runner(llm).drafter
    monkeypatch.setattr(speculator, "_model", speculator._model)
    monkeypatch.setattr(speculator, "_drafter", speculator._drafter)

    def fail(*arguments: Any, **more: Any) -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(speculator._model, method, fail)
    before = tally(llm)["drafter_failures"]
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    assert tally(llm)["drafter_failures"] == before + 1


def configure(head: Path, family: str = "llava", **more: Any) -> Any:
    speculative = {"method": "specvlm", "model": str(head), **more}
    arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512}
    return EngineArgs(model=str(target_of(family)), **arguments, speculative_config=speculative).create_engine_config()


def test_a_head_of_another_target_is_refused() -> None:
    head = build_head("llava", POOL)
    with pytest.raises(
        ValueError, match=r"was made for 'llava-\w+' and the target is .*: its model type is qwen2_5_vl"
    ):
        configure(head, "qwen2_5_vl")
    with pytest.raises(ValueError, match="its layer digest is"):  # same sizes, other weights: known from its files
        engine(build("llava", seed=5), {"model": str(head)})


def test_an_older_head_of_another_target_is_refused(tmp_path: Path) -> None:
    """It knows the final norm alone, which is compared once it is loaded."""
    head = tmp_path / "head"
    shutil.copytree(build_head("llava", POOL), head)
    config = json.loads((head / "config.json").read_text())
    del config["target"]["layer_digest"], config["target"]["projector_digest"]
    (head / "config.json").write_text(json.dumps(config))
    configure(head)
    with pytest.raises(ValueError, match="its digest is"):
        engine(build("llava", seed=5), {"model": str(head)})


def test_a_blind_head_is_refused_unless_wanted() -> None:
    blind = build_head("llava", CompressorConfig(kind="text"))
    with pytest.raises(ValueError, match="drops all visual tokens"):
        configure(blind)
    configure(blind, text_only_draft=True)
    with pytest.raises(ValueError, match="sees pictures; leave 'text_only_draft' out"):
        configure(build_head("llava", POOL), text_only_draft=True)


def test_layers_that_vllm_does_not_show_are_refused() -> None:
    head = build_head("idefics3", POOL, feature_layers=(0, 1))
    with pytest.raises(ValueError, match=r"reads layers \[0, 1\] of the target, and vLLM's Idefics3\w+ shows only"):
        engine(target_of("idefics3"), {"model": str(head)})


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    head = tmp_path / "head"
    shutil.copytree(build_head("llava", POOL), head)
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="copy the checkpoint again"):
        engine(target_of("llava"), {"model": str(head)})


def test_one_node_trees() -> None:
    """The head's own output is never drafted from: no dense rows at all."""
    scenario = SCENARIOS[1]
    llm = with_head("llava", POOL, scenario, num_speculative_tokens=1)
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    counted = tally(llm)
    assert counted["drafter_failures"] == 0 and counted["accepted"] > 20 and counted["nodes"] == counted["trees"]


def test_bfloat16() -> None:
    """Every inner dimension here is below the size where vLLM's linear layers round by the number of rows."""
    scenario = Scenario("bfloat16", {"dtype": "bfloat16"}, max_tokens=80)
    llm = with_head("llava", COMPRESSORS["select"], scenario)
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    counted = tally(llm)
    assert counted["drafter_failures"] == 0 and counted["accepted"] > 20
