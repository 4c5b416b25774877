"""What context adds to a pass is found in passes of the same rows, and taken apart from what rows cost."""

from __future__ import annotations

import itertools
import random

import pytest

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.schedule.reading import Reading, TimedPass


def passes(reading: Reading, kind: str = "tree", nodes: tuple[int, ...] = (1, 4, 16)) -> list[TimedPass]:
    """Timed as on a machine with such a reading, 10 ms and 1 ms a row, within 3 %; some meet a busy moment."""
    chance = random.Random(1)
    found = []
    for context, requests, each, _ in itertools.product((128, 768), (1, 4, 16), nodes, range(7)):
        rows = requests * (1 + each)
        seconds = 0.010 + 0.001 * rows + context * (reading.per_request * requests + reading.per_row * rows)
        busy = 3.0 if chance.random() < 0.1 else 1.0
        found.append(
            TimedPass(kind, rows, requests, context + chance.random(), seconds * chance.uniform(0.97, 1.03) * busy)
        )
    return found


@pytest.mark.parametrize("reading", [Reading(0.0, 2e-6), Reading(8e-6, 0.0), Reading(8e-6, 2e-6)])
def test_both_parts_are_found(reading: Reading) -> None:
    found = Reading.fit(passes(reading))
    assert found.per_row == pytest.approx(reading.per_row, abs=5e-7)
    assert found.per_request == pytest.approx(reading.per_request, abs=2e-6)


def test_nothing_is_found_where_context_adds_nothing_or_is_always_the_same() -> None:
    none = Reading.fit(passes(Reading()))
    assert none.per_row < 3e-7
    assert none.per_request < 2e-6
    assert Reading.fit([each for each in passes(Reading(8e-6, 2e-6)) if each.context < 200]) == Reading()
    assert Reading.fit([]) == Reading()


def test_with_one_row_a_request_all_of_it_is_of_rows() -> None:
    found = Reading.fit(passes(Reading(8e-6, 2e-6), "plain", (0,)))
    assert found.per_request == 0.0
    assert found.per_row == pytest.approx(1e-5, rel=0.1)


def test_faster_with_more_context_is_no_reading() -> None:
    backwards = [TimedPass("tree", 4, 1, 900.0 - each.context, each.seconds) for each in passes(Reading(8e-6, 2e-6))]
    assert Reading.fit(backwards) == Reading()


@pytest.mark.parametrize("value", [-1e-6, 1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="calibrate again"):
        Reading(per_row=value)


def curve(reading: Reading = Reading()) -> CostCurve:  # noqa: B008 - a value that never changes
    return CostCurve({1: 0.011, 8192: 8.202}, reading=reading)


def test_a_curve_adds_the_context_it_is_told_of_and_saves_none() -> None:
    known = curve(Reading(8e-6, 2e-6))
    bare = known.at(8)
    known.attend(2, 500.0)
    assert known.at(8) == pytest.approx(bare + 500 * (2 * 8e-6 + 8 * 2e-6))
    assert known.over(known._rows)[0] == pytest.approx(known.at(1))
    assert CostCurve.from_dict(known.as_dict()).at(8) == pytest.approx(bare)
    assert CostCurve.from_dict(known.as_dict()).reading == known.reading


def test_fitted_costs_foretell_contexts_that_were_never_measured() -> None:
    truth = Reading(8e-6, 2e-6)
    costs = Costs(curve(), curve(), curve(), curve()).fitted([*passes(truth), *passes(truth, "plain", (0,))])
    for context in (50, 300, 1500):
        costs.attend(4, context)
        assert costs.tree.at(20) == pytest.approx(0.030 + context * (4 * 8e-6 + 20 * 2e-6), rel=0.06)
        assert costs.plain.at(4) == pytest.approx(0.014 + context * 4 * 1e-5, rel=0.06)
    # Control: as curves without a reading have it, in the middle of what was measured.
    blind = curve()
    for each in passes(truth):
        blind.observe(each.rows, each.seconds)
    assert abs(blind.at(20) / (0.030 + 1500 * (4 * 8e-6 + 20 * 2e-6)) - 1) > 0.3


@pytest.mark.parametrize("shared", [True, False])
def test_long_contexts_speak_for_trees_where_rows_share_them_and_against_where_not(shared: bool) -> None:
    reading, plain = Reading(2e-5, 0.0) if shared else Reading(0.0, 2e-5), Reading(0.0, 2e-5)

    def trees(context: float) -> bool:
        draft = CostCurve({1: 0.002, 64: 0.002})
        costs = Costs(curve(plain), curve(reading), draft, draft)
        planner = Planner(costs)
        costs.attend(4, context)
        chosen = []
        for _ in range(60):
            plan = planner.plan(4, [Candidate(str(i), 0, 100.0, Kind()) for i in range(4)])
            chosen.append(plan.mode)
            if plan.chosen:
                planner.cut({i: ([-0.6], [1]) for i in range(len(plan.chosen))})
            planner.achieved(4, 4.0, costs.plain.at(4))
        return Mode.TREES in chosen

    assert trees(0.0) is False
    assert trees(4000.0) is shared
