"""Lookup merged into every kind of drafter's trees: answers stay the target's own, whichever rows are free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.test_identity import plain, play
from tests.exactness.test_plans import with_random_plans
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.mixed_drafter import MixedDrafter

KINDS = ("vlm", "head", "exit")


def draft_of(kind: str, family: str) -> Path:
    if kind == "vlm":
        return build(family, seed=7, size=DRAFT, vocab_padding=64)
    return build_exit(family) if kind == "exit" else build_head(family, CompressorConfig(kind="pool", ratio=4))


def mixing(kind: str, family: str, scenario: Scenario, **more: Any) -> LLM:
    speculative = {"model": str(draft_of(kind, family)), "num_speculative_tokens": 12, "with_lookup": True, **more}
    llm = engine(target_of(family), speculative, **scenario.options)
    assert isinstance(runner(llm).drafter._drafter, MixedDrafter)
    return llm


def slow(*values: Any) -> Any:
    """The same road as another case, in another family or scenario."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "family", "scenario"),
    [
        *((kind, "llava", SCENARIOS[1]) for kind in KINDS),
        ("head", "llava", SCENARIOS[2]),
        ("vlm", "qwen2_5_vl", SCENARIOS[0]),
        *(slow(kind, "llava", SCENARIOS[i]) for kind in KINDS for i in (0, 2, 3, 4) if (kind, i) != ("head", 2)),
        *(slow(kind, "qwen2_5_vl", SCENARIOS[i]) for kind in KINDS for i in (1, 2)),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_identity(kind: str, family: str, scenario: Scenario) -> None:
    llm = mixing(kind, family, scenario)
    before = tally(llm)
    assert play(llm, scenario, family) == plain(family, scenario)
    after = tally(llm)
    assert after["drafter_failures"] == 0
    assert after["accepted"] - before["accepted"] > 20, "no drafts were accepted"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_forward_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random plans leave nodes to lookup, in whose subtrees the draft has no state: answers do not mind."""
    llm = mixing(kind, "llava", SCENARIOS[0], planner=True)
    with_random_plans(llm, 6, monkeypatch)
    drafter = runner(llm).drafter._drafter
    drafter.merit.traffic = 1.0  # as where it has paid: it is merged from the first trees on
    stock, free = drafter.propose_level, []

    def propose_level(frontier: Any, top_k: int) -> Any:
        free.append(0 if frontier.free is None else int(frontier.free.sum()))
        return stock(frontier, top_k)

    monkeypatch.setattr(drafter, "propose_level", propose_level)
    scenario = Scenario("longer", SCENARIOS[0].options, max_tokens=90, rounds=2)
    assert play(llm, scenario, "llava") == plain("llava", scenario)
    assert tally(llm)["drafter_failures"] == 0
    assert sum(free) > 10, "no row was free"


def test_sampled_texts_do_not_depend_on_it() -> None:
    asked = prompts("llava")
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=30, ignore_eos=True) for seed in range(len(asked))]
    other = engine(target_of("llava"), {"num_speculative_tokens": 4}, **SCENARIOS[0].options)
    said = tokens(answers(other, asked, params))
    for kind in KINDS:
        llm = mixing(kind, "llava", SCENARIOS[0])
        assert tokens(answers(llm, asked, params)) == said
        assert tally(llm)["drafter_failures"] == 0


def test_more_is_accepted_where_the_text_repeats_itself() -> None:
    """The tiny targets' long answers run in circles, which lookup sees and a head of random weights does not; it has
    to show that first."""
    scenario = Scenario("long", {"max_num_seqs": 7}, max_tokens=120)
    speculative = {"model": str(draft_of("head", "llava")), "num_speculative_tokens": 12}
    shares = []
    for more in ({}, {"with_lookup": True}):
        llm = engine(target_of("llava"), {**speculative, **more}, **scenario.options)
        before = tally(llm)
        assert play(llm, scenario, "llava") == plain("llava", scenario)
        after = tally(llm)
        shares.append((after["accepted"] - before["accepted"]) / (after["trees"] - before["trees"]))
    assert shares[1] > 1.1 * shares[0]


@pytest.mark.parametrize("call", ["root", "below", "begin"])
def test_a_lookup_that_raises_switches_drafting_off_and_nothing_else(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # num_speculative_tokens makes it an engine of this test's own, as it is broken afterwards
    number = 3 + ["root", "below", "begin"].index(call)
    llm = mixing("vlm", "llava", SCENARIOS[0], num_speculative_tokens=number)

    def fault(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("injected")

    monkeypatch.setattr(runner(llm).drafter._drafter._lookup, call, fault)
    assert play(llm, SCENARIOS[0], "llava") == plain("llava", SCENARIOS[0])
    assert tally(llm)["drafter_failures"] == 1
