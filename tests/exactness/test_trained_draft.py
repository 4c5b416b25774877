"""Draft VLMs as `specvlm train` writes them: the engine reads them as they were trained, and answers stay the target's.

What the draft says in the engine, from pixels and through a paged cache, must be what the network in training says from
the target's visual tokens over the whole text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of
from tests.exactness.test_early_exit import Said, listen, pictures, slow
from tests.exactness.test_identity import plain, play
from tests.tiny.checkpoints import build
from tests.tiny.drafts import language_model, save, small_vlm, trained_target
from tests.tiny.prompts import prompts
from tests.train.test_trainer import SMALL
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.draft_vlm import DraftVLM
from vllm_specvlm.timeline.sight import ALL
from vllm_specvlm.train.draft_student import DraftStudent, drafting_states
from vllm_specvlm.train.encoder import Encoded, join_vision
from vllm_specvlm.train.layer_choice import LayerChoice
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import DraftRecipe, HeadRecipe, LossRecipe
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.trainer import Trainer

FAMILY = ("llava", "qwen2_5_vl")
POOL = CompressorConfig("pool", ratio=4.0)
WHOLE = DraftRecipe(layers=LayerChoice(named=(0, 1)))
CUT = DraftRecipe(layers=LayerChoice(count=1))


def with_draft(family: str, folder: Path, scenario: Scenario, **more: Any) -> LLM:
    return engine(target_of(family), {"model": str(folder), "num_speculative_tokens": 12, **more}, **scenario.options)


@pytest.mark.parametrize("family", ["llava", slow("qwen2_5_vl")])
def test_a_few_steps_and_into_the_engine(family: str, tmp_path: Path) -> None:
    """A language model of another width, from start to answer."""
    training = dataclasses.replace(SMALL.training, steps=4, save_every=4)
    recipe = dataclasses.replace(
        SMALL,
        head=HeadRecipe(),
        draft=DraftRecipe(start=str(language_model(family)), compressor=POOL),
        losses=LossRecipe(ce=1.0, smooth_l1=0.0),
        training=training,
    )
    student, sources = DraftStudent(build(family)), Sources(recipe.data, Path())
    run = Trainer(
        student, recipe, trained_target(family, tower=True), sources, tmp_path, Ranks(), say=lambda text: None
    )
    folder = run.run().folder
    llm = with_draft(family, folder, SCENARIOS[1])
    before = tally(llm)
    assert play(llm, SCENARIOS[1], family) == plain(family, SCENARIOS[1])
    after = tally(llm)
    assert after["drafter_failures"] == 0 and after["trees"] > before["trees"]
    assert after["compressions"].get("pool", 0) > before["compressions"].get("pool", 0)


@pytest.mark.parametrize("family", FAMILY)
def test_all_layers_of_the_target_are_always_right(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "draft", family, small_vlm(family, WHOLE))
    llm = with_draft(family, folder, SCENARIOS[0], num_speculative_tokens=4, tree="chain")
    before = tally(llm)
    assert play(llm, SCENARIOS[0], family) == plain(family, SCENARIOS[0])
    after = tally(llm)
    nodes = after["nodes"] - before["nodes"]
    assert nodes > 50 and after["accepted"] - before["accepted"] == nodes


def said_in_training(network: SmallVLM, family: str, said: Said, images: dict[str, Any]) -> torch.Tensor:
    """float32 [V]: after the last token."""
    target = trained_target(family)
    marks = torch.tensor([0, *(int(token == target.encoder._image_id) for token in said.text), 0]).diff()
    starts, stops = (marks == 1).nonzero().flatten().tolist(), (marks == -1).nonzero().flatten().tolist()
    shown = [dict(target.processor.image_processor(images=images[name], return_tensors="pt")) for name in said.shown]
    spans = [(start, stop - start) for start, stop in zip(starts, stops, strict=True)]
    if len(spans) != len(shown):  # pictures that touch are of one size
        each = sum(length for _, length in spans) // len(shown)
        spans = [(at, each) for start, length in spans for at in range(start, start + length, each)]
    filler = [said.text[-1]] * 2
    spoken = [False] * (len(said.text) - 1) + [True] * 3
    encoded = Encoded([*said.text, *filler], spoken, spans, join_vision(shown))
    with torch.no_grad():
        return network.logits(drafting_states(network, target, target.read([encoded]))[0])


@pytest.mark.parametrize(
    ("family", "scenario", "compressor"),
    [
        ("llava", SCENARIOS[1], POOL),
        ("llava", SCENARIOS[2], POOL),
        ("qwen2_5_vl", SCENARIOS[1], POOL),
        slow("llava", SCENARIOS[1], CompressorConfig("none")),
        slow("llava", SCENARIOS[0], CompressorConfig("resampler", queries=2)),
        slow("llava", SCENARIOS[1], CompressorConfig("concat")),
        slow("qwen2_5_vl", SCENARIOS[2], CompressorConfig("conv", ratio=3.0)),
        slow("qwen2_5_vl", SCENARIOS[0], CompressorConfig("prune", ratio=4.0)),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "kind", value)),
)
def test_engine_and_training_agree(
    family: str, scenario: Scenario, compressor: CompressorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_vlm(family, dataclasses.replace(CUT, compressor=compressor), moved=0.5)
    llm = with_draft(
        family, save(tmp_path / "draft", family, network), scenario, tree="chain", num_speculative_tokens=4
    )
    images = pictures(llm, family)
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, DraftVLM)
    with monkeypatch.context() as patch:
        said = listen(drafter, patch)
        assert play(llm, scenario, family) == plain(family, scenario)
    assert tally(llm)["drafter_failures"] == 0
    chosen = said[:: max(1, len(said) // 50)]
    assert len(chosen) > 40 and any(each.shown for each in chosen)
    for each in chosen:
        expected = said_in_training(network, family, each, images)
        torch.testing.assert_close(each.logits, expected, atol=2e-3, rtol=1e-3)


def test_control_tokens_that_were_compressed_otherwise_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_vlm("llava", dataclasses.replace(CUT, compressor=POOL), moved=0.5)
    folder = save(tmp_path / "draft", "llava", network)
    llm = with_draft("llava", folder, SCENARIOS[0], tree="chain", num_speculative_tokens=4)
    images = pictures(llm, "llava")
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, DraftVLM)
    compress = drafter._network.compress
    with monkeypatch.context() as patch:
        patch.setattr(drafter._network, "compress", lambda tokens: compress(tokens.flip(0)))
        said = listen(drafter, patch)
        assert play(llm, SCENARIOS[0], "llava") == plain("llava", SCENARIOS[0]), "a wrong draft never changes answers"
    shown = next(each for each in said if each.shown)
    with pytest.raises(AssertionError):
        expected = said_in_training(network, "llava", shown, images)
        torch.testing.assert_close(shown.logits, expected, atol=2e-3, rtol=1e-3)


def test_what_it_sees_is_told(tmp_path: Path) -> None:
    network = small_vlm("llava", dataclasses.replace(CUT, compressor=POOL))
    llm = with_draft("llava", save(tmp_path / "draft", "llava", network), SCENARIOS[0])
    one = next(each for each in prompts("llava") if each.name == "one picture")
    answers(llm, [one], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    drafter = runner(llm).drafter._model
    assert isinstance(drafter, DraftVLM)
    (request,) = runner(llm).requests
    (sight,) = drafter.sights(request)
    assert sight.how == "pool" != ALL and (sight.visual_tokens, sight.kept) == (16, 4)
    assert [patch.first for patch in sight.patches] == [0, 4, 8, 12]


def test_a_damaged_compressor_is_refused(tmp_path: Path) -> None:
    network = small_vlm("llava", dataclasses.replace(CUT, compressor=CompressorConfig("resampler", queries=2)))
    folder = save(tmp_path / "draft", "llava", network)
    weights = folder / "compressor" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="copy the checkpoint again"):
        engine(target_of("llava"), {"model": str(folder)})
