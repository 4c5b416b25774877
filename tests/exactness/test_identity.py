"""Greedy answers are token for token those of plain vLLM, in every way a request can take through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import (
    SCENARIOS,
    Scenario,
    answers,
    count_preemptions,
    engine,
    preemptions,
    runner,
    tally,
    target_of,
    tokens,
)
from tests.exactness.oracle import OracleDrafter
from tests.tiny.checkpoints import build
from tests.tiny.prompts import Prompt, prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.tree.tree_shape import TreeShape

FAMILIES = ("llava", "qwen2_5_vl")
OTHER_FAMILIES = ("idefics3", "internvl", "llava_next", "llava_onevision", "mistral3", "qwen2_vl", "qwen3_vl")
ORACLE_SHAPE = TreeShape(nodes=12, depth=5, width=3, top_k=3)


def play(llm: LLM, scenario: Scenario, family: str) -> list[list[tuple[int, ...]]]:
    """The answers of every round."""
    batch = prompts(family) * scenario.copies
    count_preemptions(llm)
    said = [tokens(answers(llm, batch, scenario.params())) for _ in range(scenario.rounds)]
    assert (preemptions(llm) > 0) == (scenario.name == "preemption")
    return said


def plain(family: str, scenario: Scenario) -> list[list[tuple[int, ...]]]:
    return play(engine(target_of(family), **scenario.options), scenario, family)


def with_oracle(family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """A speculative engine whose drafter knows this scenario's plain answers."""
    reference = answers(
        engine(target_of(family), **scenario.options), prompts(family) * scenario.copies, scenario.params()
    )
    known = {tuple(o.prompt_token_ids or ()): tuple(o.outputs[0].token_ids) for o in reference}
    llm = engine(target_of(family), {"num_speculative_tokens": 12}, **scenario.options)
    speculator = runner(llm).drafter
    monkeypatch.setattr(speculator, "_drafter", OracleDrafter(known, 500))
    monkeypatch.setattr(speculator, "shape", ORACLE_SHAPE)
    monkeypatch.setattr(speculator._text, "_told", {})
    return llm


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(family, marks=pytest.mark.nightly) for family in OTHER_FAMILIES)]
)
class TestScenarios:
    def test_oracle_trees(self, family: str, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
        llm = with_oracle(family, scenario, monkeypatch)
        before = tally(llm)
        assert play(llm, scenario, family) == plain(family, scenario)
        after = tally(llm)
        trees = after["trees"] - before["trees"]
        accepted = after["accepted"] - before["accepted"]
        # Two prompts differ only in their pictures; the oracle knows one answer for both, and is wrong about the other.
        assert trees > 20 and accepted > 0.8 * trees, "the trees were not really exercised"

    def test_lookup(self, family: str, scenario: Scenario) -> None:
        llm = engine(target_of(family), {}, **scenario.options)
        before = tally(llm)["accepted"]
        assert play(llm, scenario, family) == plain(family, scenario)
        assert tally(llm)["accepted"] > before

    def test_small_draft(self, family: str, scenario: Scenario) -> None:
        draft = build(family, seed=7, size=DRAFT, vocab_padding=64)
        llm = engine(target_of(family), {"model": str(draft), "num_speculative_tokens": 12}, **scenario.options)
        assert play(llm, scenario, family) == plain(family, scenario)
        assert tally(llm)["trees"] > 0

    def test_draft_with_the_targets_weights_is_always_right(self, family: str, scenario: Scenario) -> None:
        target = target_of(family)
        speculative = {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}
        llm = engine(target, speculative, **scenario.options)
        before = tally(llm)
        assert play(llm, scenario, family) == plain(family, scenario)
        after = tally(llm)
        nodes = after["nodes"] - before["nodes"]
        assert nodes > 50
        assert after["accepted"] - before["accepted"] == nodes, "a draft equal to its target was rejected"


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every inner dimension here is below the size where vLLM's linear layers round by the number of rows."""
    scenario = Scenario("bfloat16", {"dtype": "bfloat16"}, max_tokens=80)
    reference = plain(family, scenario)
    assert play(with_oracle(family, scenario, monkeypatch), scenario, family) == reference
    target = target_of(family)
    chain = engine(target, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}, **scenario.options)
    assert play(chain, scenario, family) == reference


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families(family: str) -> None:
    scenario = SCENARIOS[1]
    target = target_of(family)
    reference = plain(family, scenario)
    chain = engine(target, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}, **scenario.options)
    assert play(chain, scenario, family) == reference
    counted = tally(chain)
    assert counted["nodes"] > 50 and counted["accepted"] == counted["nodes"]
    draft = build(family, seed=7, size=DRAFT)
    tree = engine(target, {"model": str(draft), "num_speculative_tokens": 12}, **scenario.options)
    assert play(tree, scenario, family) == reference


@pytest.mark.parametrize(
    ("family", "changes"), [("llava", {"kv_heads": 1}), ("qwen2_5_vl", {"kv_heads": 1}), ("llava", {"head_dim": 64})]
)
def test_a_draft_with_other_heads(family: str, changes: dict[str, int]) -> None:
    """Its K/V take less or more room a token than the target's, as with Qwen2.5-VL-3B beside 7B, in the same blocks."""
    scenario = SCENARIOS[1]
    draft = build(family, seed=7, size=replace(DRAFT, **changes))
    speculative = {"model": str(draft), "num_speculative_tokens": 12}
    llm = engine(target_of(family), speculative, **scenario.options)
    assert play(llm, scenario, family) == plain(family, scenario)
    assert tally(llm)["trees"] > 0 and tally(llm)["drafter_failures"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_multi_turn_with_speculation_off_in_between(family: str) -> None:
    """Turn 2 wants given tokens' log-probs and is decoded plainly: the draft is not fed, and catches up in turn 3."""
    target = target_of(family)
    speculative = {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}

    def turns(llm: LLM) -> tuple[list[Any], list[int]]:
        asked: Sequence[Prompt] = prompts(family)[:4]
        said, hits = [], []
        for turn in range(3):
            given = [40, 41] if turn == 1 else None
            params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprob_token_ids=given)
            outputs = answers(llm, asked, params)
            said.append(tokens(outputs))
            hits.append(sum(output.num_cached_tokens or 0 for output in outputs))
            asked = [p.follow_up(o.outputs[0].text, "go on") for p, o in zip(asked, outputs, strict=True)]
        return said, hits

    reference, _ = turns(engine(target))
    llm = engine(target, speculative)
    before = tally(llm)
    said, hits = turns(llm)
    after = tally(llm)
    assert said == reference
    assert hits[1] > 0 and hits[2] > hits[1], "no turn hit the prefix cache"
    assert after["accepted"] - before["accepted"] == after["nodes"] - before["nodes"] > 50


def test_draft_equal_to_target_sees_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control for full acceptance: a draft that is blind for the pictures is rejected somewhere."""
    target = target_of("llava")
    speculative = {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}
    llm = engine(target, speculative)
    vision = runner(llm).drafter._model._vision
    monkeypatch.setattr(vision, "embeddings", lambda features: {})
    before = tally(llm)
    scenario = SCENARIOS[0]
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    after = tally(llm)
    assert after["accepted"] - before["accepted"] < after["nodes"] - before["nodes"]
