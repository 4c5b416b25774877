"""What the clock says of steps: those that only decode teach costs, those that compute prompts too are told apart."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_specvlm.engine.step_clock import Elapsed, StepClock
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.reading import Reading


class Alone:
    """As `Peers` of one rank."""

    def share(self, values: list[Any]) -> list[Any]:
        return values


CONTEXT = {"a": 100, "b": 300, "new": 0, "chunk": 500}


def flat(seconds: float) -> CostCurve:
    return CostCurve({1: seconds, 64: seconds})


def scheduled(tokens: dict[str, int], drafts: dict[str, int], new: tuple[str, ...] = ()) -> SimpleNamespace:
    """A step of vLLM's scheduler with so many tokens of each request, of which so many are drafts."""
    return SimpleNamespace(
        scheduled_spec_decode_tokens={request: [0] * count for request, count in drafts.items()},
        scheduled_new_reqs=[SimpleNamespace(req_id=request) for request in new],
        scheduled_cached_reqs=SimpleNamespace(
            resumed_req_ids=set(),
            req_ids=[request for request in tokens if request not in new],
            num_computed_tokens=[CONTEXT[request] for request in tokens if request not in new],
        ),
        num_scheduled_tokens=tokens,
    )


def step(clock: StepClock, of: SimpleNamespace, took: float) -> Elapsed:
    """Drafting of 5 ms, then a step of the scheduler's that takes so long."""
    clock.begin_drafting()
    time.sleep(0.005)
    clock.end_drafting()
    clock.observe_schedule(of)
    time.sleep(took)
    return clock.begin_drafting()


def clock() -> tuple[StepClock, Costs]:
    costs = Costs(flat(0.010), flat(0.020), flat(0.001), flat(0.001))
    return StepClock(costs, Alone()), costs


def test_a_step_that_only_decodes_is_what_it_took() -> None:
    timed, costs = clock()
    elapsed = step(timed, scheduled({"a": 4, "b": 1}, {"a": 3}), 0.08)
    assert elapsed.requests == 2
    assert elapsed.cycle is not None
    assert 0.085 <= elapsed.cycle < 0.2
    assert costs.tree.at(5) > 0.021, "the curve has not learned"


@pytest.mark.parametrize("drafts, decoding", [({"a": 3}, 0.020), ({}, 0.010)])
def test_of_a_step_with_prompts_the_drafting_counts_and_decoding_as_known(
    drafts: dict[str, int], decoding: float
) -> None:
    timed, costs = clock()
    tokens = {"a": 1 + drafts.get("a", 0), "b": 1, "new": 500, "chunk": 200}
    elapsed = step(timed, scheduled(tokens, drafts, new=("new",)), 0.2)
    assert elapsed.requests == 2
    assert elapsed.cycle is not None
    assert 0.005 + decoding <= elapsed.cycle < 0.1, "the prompt's time is in it"
    assert costs.tree.at(5) == pytest.approx(0.020), "a prompt's step has taught what trees cost"


def test_prompts_alone_say_nothing() -> None:
    timed, _ = clock()
    assert step(timed, scheduled({"new": 30}, {}, new=("new",)), 0.01).cycle is None


def test_passes_are_noted_with_the_context_of_those_that_decode() -> None:
    timed, _ = clock()
    step(timed, scheduled({"a": 4, "b": 1}, {"a": 3}), 0.01)
    assert timed.watched is None
    timed.watched = []
    step(timed, scheduled({"a": 4, "b": 1}, {"a": 3}), 0.02)
    [found] = timed.watched
    assert (found.kind, found.rows, found.requests, found.context) == ("tree", 5, 2, 200.0)
    assert 0.02 <= found.seconds < 0.1


def test_what_context_adds_is_not_learned_as_the_cost_of_rows() -> None:
    costs = Costs(flat(0.010), flat(0.010), flat(0.001), flat(0.001))
    knowing = CostCurve({1: 0.010, 64: 0.010}, reading=Reading(per_row=1e-5))
    costs = dataclasses.replace(costs, tree=knowing)
    timed = StepClock(costs, Alone())
    for _ in range(3):
        step(timed, scheduled({"a": 4, "b": 1}, {"a": 3}), 0.02)  # 5 rows x 200 tokens: 10 ms of the 20
    knowing.attend(0, 0.0)
    assert 0.009 <= knowing.at(5) < 0.015
