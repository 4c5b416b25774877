"""A drafter or planner that fails, in whichever of its calls, costs speed, never an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.exactness import engines
from tests.exactness.engines import answers, engine, runner, tally, target_of, tokens
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import prompts
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.engine import speculator as speculator_module
from vllm_specvlm.engine.draft_vlm import DraftVLM
from vllm_specvlm.engine.exit_drafter import ExitDrafter
from vllm_specvlm.engine.feature_drafter import FeatureDrafter
from vllm_specvlm.engine.metric import DRAFTER_OFF, first_cell
from vllm_specvlm.engine.speculator import Speculator
from vllm_specvlm.schedule.plan import Candidate, Mode, Plan
from vllm_specvlm.schedule.planner import Planner

_OFF = first_cell(DRAFTER_OFF)
SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=40, ignore_eos=True)
KINDS: dict[str, type] = {"vlm": DraftVLM, "head": FeatureDrafter, "exit": ExitDrafter, "lookup": LookupDrafter}

DRAFTER = ("begin", "advance", "open", "propose_level", "finish")
"""Calls of every drafter, attributes of `Speculator._drafter`."""
OWN = {
    "vlm": ("observe_schedule", "_network.forward", "_network.logits", "_choice.learn", "_choice._calibration.learn"),
    "head": (
        *("observe_schedule", "keep_features", "keep_pictures", "_network.forward", "_network.compress"),
        *("_choice._calibration.learn", "_features.keep"),
    ),
    "exit": ("observe_schedule", "_network.forward", "_choice.learn", "_choice._calibration.learn"),
    "lookup": ("_found", "_plain"),
}
"""Calls of one kind alone."""
PLANNING = (
    *("_drafter.backlog", "_lengths.observe", "_lengths.remaining"),
    *(
        "_planning.clock.observe_schedule",
        "_planning.clock.begin_drafting",
        "_planning.clock.passed",
        "_planning.clock.end_drafting",
    ),
    *("_planning.growth.grow", "_planning.growth.observe_accepted", "_planning.growth.forget"),
    *(
        "_planning.growth.planner.plan",
        "_planning.growth.planner.forget",
        "_planning.growth.planner.admit",
        "_planning.growth.planner.cut",
    ),
    "_planning.growth.planner.achieved",
    *("_planning.growth.acceptance.log_probs", "_planning.growth.acceptance.observe"),
)
"""Calls that happen under a planner, attributes of `Speculator`."""


def speculative(kind: str, *, planner: bool) -> dict[str, Any]:
    """A configuration that no other test has, whose engine may be broken."""
    given: dict[str, Any] = {"num_speculative_tokens": 7, "planner": planner}
    if kind == "lookup":
        return {**given, "lookup_shared_tokens": 512}
    if kind == "vlm":
        return {**given, "model": str(target_of("llava"))}
    if kind == "exit":
        return {**given, "model": str(build_exit("llava"))}
    return {**given, "model": str(build_head("llava", CompressorConfig(kind="pool", ratio=4)))}


@dataclass
class Fault:
    """Raises from the n-th call on, and counts."""

    stock: Any
    after: int
    calls: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls > self.after:
            raise MemoryError("injected")
        return self.stock(*args, **kwargs)


def params() -> list[SamplingParams]:
    """Greedy and sampled requests beside each other."""
    return [engines.GREEDY, SAMPLED] * len(prompts("llava"))


@cache
def reference() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Plain vLLM's greedy answers, and the sampled texts of our own engine, a function of their seed."""
    batch = prompts("llava") * 2
    greedy = tokens(answers(engine(target_of("llava")), batch))
    sampled = tokens(answers(engine(target_of("llava"), speculative("lookup", planner=False)), batch, SAMPLED))
    assert greedy != sampled
    return greedy, sampled


def check(llm: LLM) -> None:
    """All answers are those of `reference`."""
    greedy, sampled = reference()
    found = tokens(answers(llm, prompts("llava") * 2, params()))
    assert found[0::2] == greedy[0::2]
    assert found[1::2] == sampled[1::2]


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """The errors that the speculator logs meanwhile."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    speculator_module.logger.addHandler(handler)
    try:
        yield records
    finally:
        speculator_module.logger.removeHandler(handler)


def make_whole(found: Speculator, drafter: Any) -> None:
    """Forget what the drafter still knows of requests that ended while it was off."""
    found._text._told.clear()
    for notes in ("_fed", "_holes", "_contexts", "_texts", "_answer_starts"):
        getattr(drafter, notes, {}).clear()
    if hasattr(drafter, "_cache"):
        drafter._cache.blocks._valid[:] = False
    if isinstance(drafter, FeatureDrafter):
        for request_id in list(drafter._features._chunks):
            drafter._features.forget(request_id)


def _plan_for_all(planner: Planner) -> Callable[[int, Sequence[Candidate]], Plan]:
    """Plans trees for everybody, whose time costs nothing."""

    def plan(requests: int, candidates: Sequence[Candidate]) -> Plan:
        return planner._draft(Mode.TREES, 0.0, range(len(candidates)), candidates) if candidates else planner._nothing()

    return plan


def inject(llm: LLM, path: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the call at `path` of the speculator, and see that nothing is lost but drafts."""
    found = runner(llm).drafter
    drafter = found._drafter
    assert drafter is not None
    for name in ("_drafter", "_model", "_planning", "_failure"):
        monkeypatch.setattr(found, name, getattr(found, name))  # remembered, so that the next test finds them
    if found._planning is not None:
        planner = found._planning.growth.planner
        monkeypatch.setattr(planner, "plan", _plan_for_all(planner))
    owner, _, name = path.rpartition(".")
    broken = attrgetter(owner)(found)
    fault = Fault(getattr(broken, name), after)
    monkeypatch.setattr(broken, name, fault)
    found.metrics._cells[_OFF] = 0.0
    before = tally(llm)
    try:
        with logged() as errors:
            check(llm)
            assert found._drafter is None, f"{path} was called {fault.calls} times"
            check(llm)
    finally:
        monkeypatch.undo()
        make_whole(found, drafter)
    assert fault.calls == after + 1, "called again after it failed"
    after_all = tally(llm)
    assert after_all["drafter_failures"] == before["drafter_failures"] + 1
    assert found.metrics._cells[_OFF] == 1.0
    assert ["switched off" in record.getMessage() for record in errors] == [True]
    assert errors[0].exc_info is not None and "injected" in str(errors[0].exc_info[1])


def _slow_unless(thin: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=() if thin else pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "call", "after"),
    [
        _slow_unless(kind == "vlm" and after == 3, kind, call, after)
        for kind in KINDS
        for call in (*DRAFTER, *OWN[kind])
        for after in (0, 3)
    ],
)
def test_a_drafter_that_raises(kind: str, call: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(target_of("llava"), speculative(kind, planner=False))
    assert isinstance(runner(llm).drafter._drafter, KINDS[kind])
    inject(llm, f"_drafter.{call}", after, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "path", "after"),
    [
        _slow_unless(kind == "vlm" and after == 3, kind, path, after)
        for kind in KINDS
        for path in (*PLANNING, *(f"_drafter.{call}" for call in (*DRAFTER, *OWN[kind])))
        for after in (0, 3)
    ],
)
def test_under_a_planner(kind: str, path: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(engine(target_of("llava"), speculative(kind, planner=True)), path, after, monkeypatch)


def test_the_code_of_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(target_of("llava"), speculative("vlm", planner=False))
    monkeypatch.setattr(runner(llm).drafter, "_draft", runner(llm).drafter._draft)
    inject(llm, "_runner.tree_code.encode", 3, monkeypatch)


@pytest.mark.parametrize("kind", [_slow_unless(kind == "lookup", kind) for kind in KINDS])
def test_a_drafter_that_fails_at_the_rehearsal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts without it, says so, and answers."""
    fault = Fault(KINDS[kind].rehearse, 2)  # type: ignore[attr-defined]
    monkeypatch.setattr(KINDS[kind], "rehearse", lambda self, *rows: fault(self, *rows))
    with logged() as errors:
        llm = engine(target_of("llava"), {**speculative(kind, planner=True), "num_speculative_tokens": 6})
    found = runner(llm).drafter
    assert fault.calls == 3 and found._drafter is None and found._planning is None
    assert ["switched off" in record.getMessage() for record in errors] == [True]
    assert found.metrics._cells[_OFF] == 1.0 and found.profile() is None
    check(llm)
    assert tally(llm)["trees"] == 0


@pytest.mark.parametrize("planner", [False, True])
@pytest.mark.parametrize("garbage", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("kind", [_slow_unless(kind == "vlm", kind) for kind in ("vlm", "head")])
def test_logits_that_are_no_numbers(kind: str, garbage: str, planner: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken weights, an overflow: the drafts are nonsense, or given up; the answers are the target's."""
    llm = engine(target_of("llava"), {**speculative(kind, planner=planner), "num_speculative_tokens": 5})
    network = runner(llm).drafter._model._network
    stock, calls = network.logits, []

    def broken(*args: Any) -> Any:
        calls.append(1)
        found = stock(*args)
        found[:: 1 + len(calls) % 2] = float(garbage)
        return found

    for name in ("_drafter", "_model", "_planning", "_failure"):
        monkeypatch.setattr(runner(llm).drafter, name, getattr(runner(llm).drafter, name))
    if planner:
        planned = runner(llm).drafter._planning.growth.planner
        monkeypatch.setattr(planned, "plan", _plan_for_all(planned))
    monkeypatch.setattr(network, "logits", broken)
    check(llm)
    check(llm)
    assert calls


@pytest.mark.parametrize("token", [512, -2, 2**31, 2**40])
def test_tokens_that_do_not_exist(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(target_of("llava"), speculative("vlm", planner=False))
    found = runner(llm).drafter
    drafter, before = found._drafter, tally(llm)["drafter_failures"]
    assert drafter is not None
    for name in ("_drafter", "_model", "_failure"):
        monkeypatch.setattr(found, name, getattr(found, name))
    stock = drafter.propose_level

    def broken(*args: Any) -> Any:
        proposal = stock(*args)
        proposal.tokens[:, 0] = token
        return proposal

    monkeypatch.setattr(drafter, "propose_level", broken)
    check(llm)
    monkeypatch.undo()
    make_whole(found, drafter)
    assert tally(llm)["drafter_failures"] == before + 1


def test_compiling_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass of a draft, before any request."""
    llm = engine(target_of("llava"), speculative("vlm", planner=False))
    found = runner(llm).drafter
    drafter, before = found._drafter, tally(llm)["drafter_failures"]
    assert drafter is not None and found._model is not None
    for name in ("_drafter", "_model", "_planning", "_failure"):
        monkeypatch.setattr(found, name, getattr(found, name))
    fault = Fault(found._model.warm_up, after=0)
    monkeypatch.setattr(found._model, "warm_up", fault)
    found.warm_up()
    assert fault.calls == 1 and found._drafter is None
    check(llm)
    monkeypatch.undo()
    make_whole(found, drafter)
    assert tally(llm)["drafter_failures"] == before + 1


def test_the_drafter_works_when_nothing_is_broken() -> None:
    """A control: what is switched off above would have drafted."""
    for kind in KINDS:
        llm = engine(target_of("llava"), speculative(kind, planner=False))
        before = tally(llm)
        check(llm)
        after = tally(llm)
        assert after["drafter_failures"] == before["drafter_failures"]
        assert after["accepted"] > before["accepted"] + 20


def test_a_vision_tower_that_raises_leaves_the_draft_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of("llava")
    wanted = tokens(answers(engine(target), prompts("llava")))
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 5})

    def fail(**pixels: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(runner(llm).drafter._model._vision, "_encode", fail)
    monkeypatch.setattr(runner(llm).drafter._model._vision, "_cache", type(runner(llm).drafter._model._vision._cache)())
    before = tally(llm)
    assert tokens(answers(llm, prompts("llava"))) == wanted
    after = tally(llm)
    assert after["drafter_failures"] == before["drafter_failures"]
    assert after["trees"] > before["trees"]
