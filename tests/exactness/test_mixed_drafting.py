"""Lookup merged into every kind of drafter's trees: answers stay the target's own, whichever rows are free."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.plain_pass import check, pictures_by_hash, recorded
from tests.exactness.test_identity import plain, play
from tests.exactness.test_plans import with_random_plans
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.engine.mixed_drafter import MixedDrafter
from vllm_specvlm.schedule import lookup_merit

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


def heard_openings(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Of each drafting in which lookup had a part: how many requests, how many of them the drafter was spared, and how
    many levels it drafted."""
    speculator = runner(llm).drafter
    opened, drafted = speculator._drafter.open, speculator.draft
    heard: list[tuple[int, int, int]] = []

    def open_(request_ids: Sequence[str]) -> Opening:
        opening: Opening = opened(request_ids)
        heard.append((len(request_ids), len(opening.known), 0))
        return opening

    def draft(*args: Any) -> Any:
        before, levels = len(heard), speculator.tally.levels
        codes = drafted(*args)
        if len(heard) > before:
            heard[-1] = (*heard[-1][:2], speculator.tally.levels - levels)
        return codes

    monkeypatch.setattr(speculator._drafter, "open", open_)
    monkeypatch.setattr(speculator, "draft", draft)
    return heard


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("planner", "at_once"), [(True, 8), (True, 1), (False, 1)])
def test_where_lookup_is_sure_the_drafter_is_spared(
    kind: str, planner: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny targets' long answers run in circles. Control: where the drafter is taken to be always right, it is
    asked every time."""
    scenario = Scenario("longer", {"max_num_seqs": at_once}, max_tokens=90)
    llm = mixing(kind, "llava", scenario, planner=planner, num_speculative_tokens=11)
    heard = heard_openings(llm, monkeypatch)
    merit = runner(llm).drafter._drafter.merit
    monkeypatch.setattr(merit, "drafted", lambda merit, right: None)
    if planner:
        llm.collective_rpc("specvlm_force", args=(11,))  # tiny models are too fast for the planner to want trees
    for right in (1.0, 0.3):
        heard.clear()
        merit.traffic, merit._drafter = 1.0, right
        assert play(llm, scenario, "llava") == plain("llava", scenario)
        spared = sum(known for _, known, _ in heard)
        assert spared == 0 if right == 1.0 else spared > 4
    assert all((levels > 0) == (known < asked) for asked, known, levels in heard), "a pass ran for nobody"
    if at_once > 1:
        assert any(0 < known < asked for asked, known, _ in heard), "no batch was mixed"
    assert tally(llm)["drafter_failures"] == 0


def spare_at_random(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever lookup knows, or does not, every second tree is its own alone."""
    chance = random.Random(seed)
    monkeypatch.setattr(lookup_merit, "PAYS", -1e9)
    monkeypatch.setattr(lookup_merit.LookupMerit, "suffices", lambda *_: chance.random() < 0.5)


@pytest.mark.parametrize("family", ["llava", slow("qwen2_5_vl")])
@pytest.mark.parametrize("at", [1, 2])
def test_a_draft_that_was_spared_is_still_always_right(at: int, family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the target's weights, so where it is asked all it says is accepted: it has read what it was spared."""
    target, scenario = target_of(family), SCENARIOS[at]
    chain = {"num_speculative_tokens": 4, "width": 1, "top_k": 1, "with_lookup": True}
    llm = engine(target, {"model": str(target), **chain}, **scenario.options)
    spare_at_random(monkeypatch, at)
    heard = heard_openings(llm, monkeypatch)
    drafter = runner(llm).drafter._drafter
    stock, wrong = drafter.merit.drafted, list[bool]()

    def drafted(merit: Any, right: bool) -> None:
        wrong.append(not right)
        stock(merit, right)

    monkeypatch.setattr(drafter.merit, "drafted", drafted)
    assert play(llm, scenario, family) == plain(family, scenario)
    assert any(known for _, known, _ in heard) and any(known < asked for asked, known, _ in heard)
    assert len(wrong) > 40 and not any(wrong)
    assert tally(llm)["drafter_failures"] == 0


def test_a_head_that_was_spared_has_seen_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is asked, it says what one plain pass over the whole text says."""
    scenario = SCENARIOS[1]
    llm = mixing("head", "llava", scenario, tree="chain", num_speculative_tokens=4)
    images = pictures_by_hash(llm, "llava")
    spare_at_random(monkeypatch, 5)
    heard = heard_openings(llm, monkeypatch)
    with recorded(llm, monkeypatch) as recorder:
        assert play(llm, scenario, "llava") == plain("llava", scenario)
    assert sum(known for _, known, _ in heard) > 20
    assert check(recorder, "llava", images) > 40
    assert tally(llm)["drafter_failures"] == 0
