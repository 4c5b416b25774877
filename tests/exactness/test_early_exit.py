"""Early exits: the answers stay the target's own, and what drafts is the target's layers as they are.

An exit has no cache of its own: its rows read the K/V that the target wrote, whatever way those came about, and what it
proposes must be what a plain pass of the first layers over the whole text proposes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, EngineArgs, SamplingParams
from vllm.multimodal.inputs import PlaceholderRange

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.plain_pass import Reference
from tests.exactness.test_identity import plain, play
from tests.tiny.exits import build_exit
from tests.tiny.prompts import prompts
from vllm_specvlm.draft import exit_checkpoint
from vllm_specvlm.engine.exit_drafter import ExitDrafter
from vllm_specvlm.engine.exit_network import decoder_of
from vllm_specvlm.engine.token_drafter import TokenDrafter


def with_exit(family: str, scenario: Scenario, **more: Any) -> LLM:
    exit_folder = build_exit(family)
    return engine(
        target_of(family), {"model": str(exit_folder), "num_speculative_tokens": 12, **more}, **scenario.options
    )


def slow(*values: Any) -> Any:
    """The same road as another case, in another family."""
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
    llm = with_exit(family, scenario)
    before = tally(llm)
    assert play(llm, scenario, family) == plain(family, scenario)
    after = tally(llm)
    assert after["drafter_failures"] == 0
    assert after["accepted"] - before["accepted"] > 20, "no drafts were accepted"


def test_sampled_answers_do_not_depend_on_the_drafter() -> None:
    asked = prompts("llava")
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=30, ignore_eos=True) for seed in range(len(asked))]
    drafted = with_exit("llava", SCENARIOS[0])
    other = engine(target_of("llava"), {"num_speculative_tokens": 4}, **SCENARIOS[0].options)
    assert tokens(answers(drafted, asked, params)) == tokens(answers(other, asked, params))
    assert tally(drafted)["drafter_failures"] == 0


@dataclass(frozen=True)
class Said:
    """What a drafter said about one request: after which text and drafted tokens."""

    text: tuple[int, ...]
    shown: tuple[str, ...]
    logits: torch.Tensor
    places: tuple[PlaceholderRange, ...]
    """Of what is shown."""


def listen(drafter: TokenDrafter[Any], patch: pytest.MonkeyPatch) -> list[Said]:
    """Everything said from now on, by a drafter that grows chains."""
    said: list[Said] = []
    now: list[Any] = []
    paths: dict[tuple[str, int], list[int]] = {}
    for name in ("_roots", "_level"):
        stock = getattr(drafter, name)

        def rows(frontier: Any, stock: Any = stock) -> Any:
            taken, hidden = stock(frontier)
            now[:] = [frontier, taken]
            return taken, hidden

        patch.setattr(drafter, name, rows)
    network: Any = drafter._network  # type: ignore[attr-defined]
    logits = network.logits

    def heard(hidden: torch.Tensor, *more: Any) -> torch.Tensor:
        found: torch.Tensor = logits(hidden, *more)
        frontier, taken = now
        batch = drafter._runner.input_batch
        for row, scores in zip(taken, found, strict=True):
            tree = drafter._trees[int(frontier.request[row])]
            request = batch.req_ids[tree.row]
            path = paths.setdefault((request, tree.root), [])
            if int(frontier.depth[row]):
                path.append(int(frontier.token[row]))
            text = tuple(batch.token_ids_cpu[tree.row, : tree.root + 1].tolist())
            features = drafter._runner.requests[request].mm_features
            shown, places = (feature.identifier for feature in features), (feature.mm_position for feature in features)
            said.append(Said((*text, *path), tuple(shown), scores.clone(), tuple(places)))
        return found

    patch.setattr(network, "logits", heard)
    return said


def pictures(llm: LLM, family: str) -> dict[str, Any]:
    """The test prompts' pictures by the hashes that vLLM gives them."""
    found: dict[str, Any] = {}
    stock = runner(llm)
    for prompt in prompts(family):
        answers(llm, [prompt], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        (state,) = stock.requests.values()
        found.update(zip((f.identifier for f in state.mm_features), prompt.images, strict=True))
    assert llm.reset_prefix_cache()
    return found


class FirstLayers(Reference):
    """transformers' target up to the exit, and the imitation network."""

    def __init__(self, family: str) -> None:
        self.network, _ = exit_checkpoint.load(build_exit(family))
        super().__init__(family, _Reads(self.network.config.layers))  # type: ignore[arg-type]

    def said(self, text: tuple[int, ...], images: list[Any]) -> torch.Tensor:
        """float32 [vocabulary]: after the last token."""
        with torch.inference_mode():
            return self.network.logits(self.network(self.features(text, images)[-1]))


class _Reads:
    """What `Reference.features` asks a head for: which hidden states to show."""

    def __init__(self, layers: int) -> None:
        self.config = self
        self.feature_layers = (layers,)


@pytest.mark.parametrize(
    ("family", "scenario"),
    [("llava", SCENARIOS[1]), ("llava", SCENARIOS[2]), ("qwen2_5_vl", SCENARIOS[1]), slow("qwen2_5_vl", SCENARIOS[2])],
    ids=lambda value: getattr(value, "name", value),
)
def test_engine_and_plain_pass_agree(family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = with_exit(family, scenario, tree="chain", num_speculative_tokens=4)
    images = pictures(llm, family)
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, ExitDrafter)
    with monkeypatch.context() as patch:
        said = listen(drafter, patch)
        play(llm, scenario, family)
    assert tally(llm)["drafter_failures"] == 0
    reference = FirstLayers(family)
    chosen = said[:: max(1, len(said) // 60)]
    assert len(chosen) > 40
    for each in chosen:
        expected = reference.said(each.text, [images[name] for name in each.shown])
        torch.testing.assert_close(each.logits, expected, atol=2e-3, rtol=1e-3)


def test_control_another_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = with_exit("llava", SCENARIOS[0], tree="chain", num_speculative_tokens=4)
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, ExitDrafter)
    with monkeypatch.context() as patch:
        second = decoder_of(drafter._network._target).layers[1]
        patch.setattr(drafter._network, "_layers", [second])
        patch.setattr(drafter._network, "layers", [second.self_attn.attn.layer_name])
        said = listen(drafter, patch)
        assert play(llm, SCENARIOS[0], "llava") == plain("llava", SCENARIOS[0]), "a wrong draft never changes answers"
    reference = FirstLayers("llava")
    without = next(each for each in said if not each.shown)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(without.logits, reference.said(without.text, []), atol=2e-3, rtol=1e-3)


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    exit_folder = build_exit("llava")
    with pytest.raises(ValueError, match=r"early exit .* was made for .* its model type is qwen2_5_vl, not llava"):
        EngineArgs(
            model=str(target_of("qwen2_5_vl")), speculative_config={"method": "specvlm", "model": str(exit_folder)}
        ).create_engine_config()
    broken = tmp_path / "broken"
    shutil.copytree(exit_folder, broken)
    (broken / "config.json").write_text((broken / "config.json").read_text().replace('"layers": 1', '"layers": 2'))
    with pytest.raises(ValueError, match="runs 2 layers, and its target has 2"):
        EngineArgs(
            model=str(target_of("llava")), speculative_config={"method": "specvlm", "model": str(broken)}
        ).create_engine_config()
