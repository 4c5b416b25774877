"""Videos: the target's answers, token for token, and drafters that see the frames.

A draft with the target's weights is right in every step only if its tower saw the target's frames, in their places; a
feature head's compressed tokens are those of the video that transformers shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.plain_pass import Reference, check, recorded, shown_by_hash
from tests.tiny.checkpoints import FAMILIES, build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import clips
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig

VIDEO_FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
LIMIT = {"limit_mm_per_prompt": {"image": 1, "video": 1}}
CHUNKED, PREEMPTION = SCENARIOS[1], SCENARIOS[2]


def slow(*values: Any) -> Any:
    """The same road as another case, in another family."""
    return pytest.param(*values, marks=pytest.mark.slow)


FAMILIES_BY_COST = ["llava_onevision", "qwen2_5_vl", slow("qwen2_vl"), slow("qwen3_vl"), slow("internvl")]


def with_videos(family: str, scenario: Scenario, speculative: dict[str, Any] | None = None) -> LLM:
    return engine(target_of(family), speculative, **LIMIT, **scenario.options)


def play(llm: LLM, family: str, scenario: Scenario) -> list[list[tuple[int, ...]]]:
    batch = clips(family) * scenario.copies
    return [tokens(answers(llm, batch, scenario.params())) for _ in range(scenario.rounds)]


def test_all_of_them_are_tested() -> None:
    assert {family for family, facts in FAMILIES.items() if facts.video is not None} == set(VIDEO_FAMILIES)


@pytest.mark.parametrize("scenario", [CHUNKED, slow(PREEMPTION)], ids=lambda s: s.name)
@pytest.mark.parametrize("family", FAMILIES_BY_COST)
def test_a_draft_with_the_targets_weights_is_always_right(family: str, scenario: Scenario) -> None:
    target = target_of(family)
    reference = play(with_videos(family, scenario), family, scenario)
    assert len(set(reference[0])) == len(clips(family)), "the answers do not depend on the videos"
    llm = with_videos(family, scenario, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"})
    assert play(llm, family, scenario) == reference
    counted = tally(llm)
    assert counted["nodes"] > 50 and counted["accepted"] == counted["nodes"]


@pytest.mark.parametrize("family", FAMILIES_BY_COST)
def test_control_a_draft_that_saw_other_frames_is_rejected(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers stay, the acceptance does not."""
    target = target_of(family)
    llm = with_videos(family, CHUNKED, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"})
    vision = runner(llm).drafter._model._vision
    stock = vision.embeddings

    def other(features: Any) -> Any:
        videos = {feature.identifier for feature in features if feature.modality == "video"}
        return {name: seen.flip(0) if name in videos else seen for name, seen in stock(features).items()}

    monkeypatch.setattr(vision, "embeddings", other)
    before = tally(llm)
    # Blocks of an earlier test may still hold what the draft saw then.
    runner(llm).drafter._model._cache.blocks.clear(range(runner(llm).kv_cache_config.num_blocks))
    assert play(llm, family, CHUNKED) == play(with_videos(family, CHUNKED), family, CHUNKED)
    after = tally(llm)
    assert after["accepted"] - before["accepted"] < after["nodes"] - before["nodes"]


@pytest.mark.parametrize("family", FAMILIES_BY_COST)
def test_trees_of_every_drafter(family: str) -> None:
    reference = play(with_videos(family, CHUNKED), family, CHUNKED)
    drafters: dict[str, dict[str, Any]] = {
        "small": {"model": str(build(family, seed=7, size=DRAFT, vocab_padding=64))},
        "exit": {"model": str(build_exit(family))},
        "lookup": {},
    }
    for name, speculative in drafters.items():
        llm = with_videos(family, CHUNKED, {**speculative, "num_speculative_tokens": 12})
        assert play(llm, family, CHUNKED) == reference, name
        counted = tally(llm)
        assert counted["accepted"] > 0 and counted["drafter_failures"] == 0, name


@pytest.mark.parametrize("family", FAMILIES_BY_COST)
def test_a_head_reads_the_videos(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = build_head(family, CompressorConfig(kind="pool", ratio=4))
    llm = with_videos(family, CHUNKED, {"model": str(head), "num_speculative_tokens": 4, "tree": "chain"})
    shown = shown_by_hash(llm, clips(family))
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, family, CHUNKED) == play(with_videos(family, CHUNKED), family, CHUNKED)
    assert tally(llm)["drafter_failures"] == 0
    if not FAMILIES[family].mrope:
        assert check(recorder, family, shown) > 40
        return
    # What the head makes of the frames only: behind a video vLLM counts positions on from its last frame in time,
    # transformers 5.19 from the frames' size, so that the targets' features differ.
    reference = Reference(family, recorder.drafter._network.head)
    chosen = [seen for seen in recorder.seen if any(isinstance(shown[name], np.ndarray) for name in seen.shown)][::8]
    assert len(chosen) > 5
    for seen in chosen:
        reference.features(seen.text, [shown[name] for name in seen.shown])
        assert len(seen.pictures) == len(seen.shown)
        reference.check_pictures(seen)


def test_turns() -> None:
    """A second question about a video, which vLLM then finds in its prefix cache."""
    family = "qwen2_5_vl"
    target = target_of(family)

    def turns(llm: LLM) -> tuple[list[Any], int]:
        asked, said, hits = clips(family), [], 0
        for _ in range(2):
            outputs = answers(llm, asked, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
            said.append(tokens(outputs))
            hits += sum(output.num_cached_tokens or 0 for output in outputs)
            asked = [p.follow_up(o.outputs[0].text, "go on") for p, o in zip(asked, outputs, strict=True)]
        return said, hits

    reference, _ = turns(with_videos(family, SCENARIOS[0]))
    speculative = {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}
    llm = with_videos(family, SCENARIOS[0], speculative)
    said, hits = turns(llm)
    assert said == reference and hits > 0
    assert tally(llm)["accepted"] == tally(llm)["nodes"] > 50
