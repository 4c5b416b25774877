"""The planner against the formula by brute force, and what users were promised: it stays out where it would lose."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.schedule.plays import BUSY_SHAPE, IDLE_SHAPE, READY, keep, numbered, planner, play, ready
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Kind, Mode
from vllm_specvlm.schedule.planner import Planner


def test_idle_machine_and_good_draft_speculate() -> None:
    done = play(planner(IDLE_SHAPE), 4, 0.9, 60)
    assert all(mode is Mode.TREES for mode, _ in done[40:])
    assert min(nodes for _, nodes in done[40:]) >= 4 * 4


def test_what_plain_decoding_costs_is_looked_at_soon() -> None:
    """Three plain steps early on, however good the draft: the rehearsal may have met a busy moment."""
    done = play(planner(IDLE_SHAPE), 4, 0.9, 40)
    assert [mode for mode, _ in done].count(Mode.PLAIN) == 3
    assert Mode.PLAIN in {mode for mode, _ in done[:20]}


def test_busy_machine_stays_plain() -> None:
    """Each row costs as much as a token is worth: no draft is good enough."""
    done = play(planner(BUSY_SHAPE), 16, 0.9, 400)
    assert Mode.TREES not in {mode for mode, _ in done}
    # Looking costs little: one request's small tree, now and then.
    assert sum(mode is Mode.PROBE for mode, _ in done[20:]) < 60


def test_bad_draft_stays_plain() -> None:
    done = play(planner(IDLE_SHAPE), 1, 0.02, 200)
    assert Mode.TREES not in {mode for mode, _ in done}


def test_a_step_with_trees_is_never_cheaper_than_one_without() -> None:
    """Plain steps turn out dearer than passes measured alone; steps with trees, of which none was seen, will too."""
    planned = planner(IDLE_SHAPE)
    before = planned.costs.tree.at(16)
    for _ in range(30):
        planned.costs.plain.observe(16, 0.018)
    done = play(planned, 16, accepted=0.05, steps=60)
    assert sum(mode is Mode.TREES for mode, _ in done) == 0
    assert planned.costs.tree.at(16) == before < 0.7 * planned.costs.plain.at(16)
    assert planned._missing == pytest.approx(planned.costs.plain.at(16) - before)


def test_where_trees_were_seen_they_cost_what_they_were_seen_to_cost() -> None:
    """With many more rows than requests only: no dearer than those, and never cheaper than a plain step."""
    planned = planner(IDLE_SHAPE)
    for _ in range(30):
        planned.costs.plain.observe(64, 0.010)
        planned.costs.tree.observe(512, 0.010)
    done = play(planned, 64, accepted=0.6, steps=60)
    assert sum(mode is Mode.TREES for mode, _ in done) > 30
    assert planned._missing == 0.0 and planned.costs.tree.at(64) < 0.9 * planned.costs.plain.at(64)
    rows = np.arange(64, 600, dtype=np.float64)
    assert planned._steps(rows).tolist() == pytest.approx([planned._step(int(row)) for row in rows])
    assert planned._step(64) == planned.costs.plain.at(64) and planned._step(599) == planned.costs.tree.at(599)


@pytest.mark.parametrize(("rows", "said"), [(15, False), (16, True), (256, True), (400, False)])
def test_three_steps_with_trees_say_what_such_steps_lack(rows: int, said: bool) -> None:
    """Of as many rows as there are requests to seventeen times as many."""
    costs = planner(IDLE_SHAPE).costs
    for _ in range(30):
        costs.plain.observe(16, 0.018)
    for _ in range(2):
        costs.tree.observe(rows, costs.tree.at(rows))
    assert costs.missing(16) == pytest.approx(0.018 - costs.tree.at(16)), "two do not"
    costs.tree.observe(rows, costs.tree.at(rows))
    assert (costs.missing(16) == 0.0) == said


def test_small_trees_are_worth_it_where_large_ones_are_not() -> None:
    """A batch whose first further rows are cheap and whose later ones are not: one node each, not none."""
    planned = planner({1: 0.050, 64: 0.140, 128: 0.160, 256: 0.500, 512: 1.300})
    done = play(planned, 64, 0.85, 60)
    assert [nodes for mode, nodes in done[40:] if mode is Mode.TREES] == [64] * 20


def test_what_any_tree_costs_is_shared_by_all_nodes() -> None:
    """Of twelve requests four may have trees: one node in each does not pay for the stair, eight in each do."""
    step, stair = {1: 0.010, 512: 0.0125}, {1: 0.014, 64: 0.0145, 512: 0.020}
    draft = CostCurve({1: 0.0004, 64: 0.0005})
    planned = Planner(Costs(CostCurve(step), CostCurve(stair), draft, draft))
    grown = np.log([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).tolist(), [1, 2, 3, 4, 5, 6]
    modes = []
    for _ in range(200):
        plan = planned.plan(12, ready(4))
        modes.append(plan.mode)
        if plan.mode is Mode.PLAIN:
            planned.achieved(12, 12, planned.costs.plain.at(12))
            continue
        planned.cut(numbered([grown] * len(plan.chosen)))
        planned.achieved(12, 12 + 3.9 * len(plan.chosen), 0.018)
    assert modes[-40:].count(Mode.TREES) > 30


@pytest.mark.parametrize("faster", [0.8, 0.6])
def test_plain_decoding_that_became_cheaper_is_noticed(faster: float) -> None:
    """While trees are drafted in nearly all steps: they just paid, and then what made all steps slow is over."""
    planned = planner(IDLE_SHAPE)
    modes = []
    for step in range(3000):
        plan = planned.plan(4, ready(4))
        plain, with_trees = (0.010, 0.025) if step < 500 else (0.010 * faster, 0.025)
        planned.costs.attend(4, 0.0)
        if plan.mode is Mode.PLAIN:
            planned.costs.plain.observe(4, plain)
            planned.achieved(4, 4, plain)
        else:
            planned.cut(numbered([(np.log([0.9, 0.85]).tolist(), [1, 2])] * len(plan.chosen)))
            planned.costs.tree.observe(12, with_trees - 0.006)
            planned.achieved(4, 4 + 7.0 / 4 * len(plan.chosen), with_trees)
        modes.append(plan.mode)
    assert modes[400:500].count(Mode.TREES) > 90
    gone = next(i for i in range(500, 3000) if Mode.TREES not in modes[i : i + 20])
    assert gone < 500 + 5 * 128


def test_a_dear_drafter_stays_plain() -> None:
    done = play(planner(IDLE_SHAPE, {1: 0.050, 64: 0.050}), 1, 0.9, 200)
    assert Mode.TREES not in {mode for mode, _ in done}


def test_it_starts_again_when_the_draft_gets_better() -> None:
    planned = planner(IDLE_SHAPE)
    play(planned, 2, 0.02, 300)
    done = play(planned, 2, 0.9, 6000)
    assert done[-1][0] is Mode.TREES


def test_plain_steps_are_refreshed_while_speculating() -> None:
    done = play(planner(IDLE_SHAPE), 1, 0.9, 600)
    assert [mode for mode, _ in done[40:]].count(Mode.PLAIN) in (4, 5)


def test_an_answer_too_short_to_repay_its_feeding_is_left_plain() -> None:
    planned = planner({1: 0.010, 64: 0.012}, {1: 0.001, 64: 0.002, 1024: 0.050})
    play(planned, 2, 0.9, 60)
    short, long = (replace(READY, request_id="1", backlog=1000, remaining=left) for left in (4.0, 400.0))
    plain = 2 / planned.costs.plain.at(2)
    assert planned._choose(2, [READY, short], plain, 1.0)[0] == [0]
    assert sorted(planned._choose(2, [READY, long], plain, 1.0)[0]) == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_takes_all_that_is_worth_its_time(seed: int) -> None:
    """Time is worth the tokens that the plan promised of it. Against every combination of prefixes of three trees."""
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.exponential(1e-3, 6)) + 0.005
    step = dict(zip((1, 2, 4, 8, 16, 32), knots.tolist(), strict=True))
    planned = planner(step)
    play(planned, 3, 0.9, 80)
    plan = planned.plan(3, ready(3))
    assert plan.mode is Mode.TREES
    trees = [sorted(np.log(rng.beta(1, 1, 5)).tolist(), reverse=True) for _ in range(3)]

    def worth(sizes: tuple[int, ...]) -> float:
        gained = sum(float(np.exp(tree[:n]).sum()) for tree, n in zip(trees, sizes, strict=True))
        nodes = sum(sizes)
        seconds = planned.costs.tree.at(3 + nodes) if nodes else planned.costs.plain.at(3)
        return gained - planned._goal * seconds

    best = max(worth(sizes) for sizes in itertools.product(range(6), repeat=3))
    kept = planned.cut(numbered([(tree, [1] * 5) for tree in trees]))
    assert worth(tuple(kept)) == pytest.approx(best)


def test_a_probe_verifies_something_even_where_it_loses() -> None:
    planned = planner(BUSY_SHAPE)
    plan = planned.plan(16, ready(16))
    assert plan.mode is Mode.PROBE and len(plan.chosen) == 1
    assert planned.cut({0: (np.log([0.1, 0.05, 0.01]).tolist(), [1, 1, 1])}) == [3]


def test_nothing_grown_is_nothing_verified() -> None:
    planned = planner(IDLE_SHAPE)
    planned.plan(2, ready(2))
    assert planned.cut({0: ((), ())}) == [0]
    assert planned.cut({}) == []


def test_nobody_to_draft_for() -> None:
    assert planner(IDLE_SHAPE).plan(3, []).mode is Mode.PLAIN


def test_same_history_same_plans() -> None:
    assert play(planner(IDLE_SHAPE), 3, 0.8, 100) == play(planner(IDLE_SHAPE), 3, 0.8, 100)


def test_requests_that_ask_for_small_trees_say_nothing_about_others() -> None:
    planned = planner(IDLE_SHAPE)
    play(planned, 2, 0.9, 60)
    before = planned._outlooks.of([replace(READY, request_id="new")]).values
    small = replace(READY, kind=Kind(usual=False))
    for _ in range(100):
        plan = planned.plan(2, ready(2, replace(small, request_id="small")))
        planned.cut({i: ([np.log(0.02)], [1]) for i in range(len(plan.chosen))})
    assert (planned._outlooks.of([replace(READY, request_id="new")]).values == before).all()
    assert planned._outlooks.of([replace(small, request_id="new")]).accepted.sum() < 0.2


def test_probes_look_at_different_requests() -> None:
    planned = planner(BUSY_SHAPE)
    seen = set()
    for _ in range(3000):
        plan = planned.plan(8, ready(8))
        seen.update(plan.chosen)
        if plan.mode is Mode.PROBE:
            planned.cut({0: (np.log([0.5, 0.1]).tolist(), [1, 1])})
        planned.achieved(8, 8, 0.08)
    assert len(seen) > 4


def test_a_probe_dearer_than_a_second_is_paid_for_in_time() -> None:
    """A long prompt on a slow machine: off must not mean off for ever."""
    planned = planner({1: 0.5, 64: 20.0}, {1: 0.05, 8192: 10.0})
    play(planned, 2, 0.02, 20)
    far = replace(READY, backlog=4000, remaining=500.0)
    modes = []
    for _ in range(3000):
        modes.append(planned.plan(2, ready(2, far)).mode)
        planned.achieved(2, 2, 0.5)
    assert Mode.PROBE in modes


def test_a_bounded_neighbour_does_not_keep_the_planner_from_learning() -> None:
    """It has always caught up, and its trees say little: the others are looked at, and then drafted for."""
    planned = planner(IDLE_SHAPE)
    bounded = replace(READY, kind=Kind(usual=False))
    modes = []
    for _ in range(400):
        plan = planned.plan(8, [bounded, *ready(8)[1:]])
        modes.append(plan.mode)
        came = 8
        if plan.mode is not Mode.PLAIN:
            planned.cut(numbered([(np.log([0.9, 0.8]).tolist(), [1, 2])] * len(plan.chosen)))
            came += 2 * len(plan.chosen)
        planned.achieved(8, came, 1.2 * planned.costs.plain.at(8))
    assert modes[-100:].count(Mode.TREES) > 95
    alone = planner(BUSY_SHAPE)
    modes = []
    for _ in range(2000):
        plan = alone.plan(1, [bounded])
        modes.append(plan.mode)
        if plan.mode is not Mode.PLAIN:
            alone.cut({0: ([np.log(0.02)], [1])})
        alone.achieved(1, 1, alone.costs.plain.at(1) * (1.0 if plan.mode is Mode.PLAIN else 3.0))
    assert modes.count(Mode.PROBE) < 40


def test_looks_go_to_those_too_that_have_to_be_read_first() -> None:
    """One short prompt among seven with pictures, all unread: what it is worth says nothing of theirs."""
    planned = planner(BUSY_SHAPE)
    seen = []
    for _ in range(4000):
        plan = planned.plan(8, [replace(each, backlog=200 if i else 20) for i, each in enumerate(ready(8))])
        if plan.mode is Mode.PROBE:
            seen.append(plan.chosen[0])
            planned.cut({0: ([np.log(0.02)], [1])})
        planned.achieved(8, 8, planned.costs.plain.at(8) + (0.01 if plan.mode is Mode.PROBE else 0.0))
    assert set(seen) == set(range(8))


def test_a_level_that_was_given_up_is_tried_again() -> None:
    planned = planner(IDLE_SHAPE)
    play(planned, 4, 0.9, 100)
    first = planned._ratio[1]
    planned._ratio[1:] = 0.01
    for _ in range(300):
        plan = planned.plan(4, ready(4))
        planned.cut(numbered([(np.log([0.9]).tolist(), [1])] * len(plan.chosen)))
    assert planned._ratio[1] > 0.5 * min(first, 0.6)


def test_what_is_known_is_checked_where_a_row_is_worth_it() -> None:
    """Each further row takes 1/64 of the time that is worth 1.9 tokens: free nodes below that are left out."""
    linear = {1: 0.010, 65: 0.020}
    planned = planner(linear)
    play(planned, 1, 0.9, 40)
    while planned.plan(1, [READY]).mode is not Mode.TREES:
        planned.achieved(1, 1, planned.costs.plain.at(1))
    price = planned._goal * (0.010 / 64)
    assert 0.005 < price < 0.2
    scores = [np.log(2 * price), np.log(0.5 * price), np.log(0.99)]
    assert planned.admit_free(3, scores) == [True, False, True]


def test_levels_that_were_free_cost_no_passes() -> None:
    """The same nodes, foreseen from the first pass on, are expected to be worth more than if each level was drafted."""
    scores, deep = [np.log(0.9) * d for d in range(1, 7)], [1, 2, 3, 4, 5, 6]
    expected = []
    for passes in (deep, [1] * 6):
        planned = planner(IDLE_SHAPE, {1: 0.004, 64: 0.008})
        for _ in range(40):
            if planned.plan(1, [READY]).mode is not Mode.PLAIN:
                for depth in sorted(set(passes))[:-1]:
                    planned.passed(depth, 1, 1.0)
                planned.cut({0: (scores, passes)})
        expected.append(planned._goodput(1, planned._outlooks.of([READY]))[0])
    assert expected[1] > 1.2 * expected[0]


def test_a_graph_that_is_paid_for_is_filled() -> None:
    """Where a step of 33 rows takes as long as one of 40, the nodes up to 40 cost nothing."""
    prior = {1: 0.010, 65: 0.042}
    checked = []
    for graphs in ((), (16, 40, 64)):
        curve = CostCurve(prior, graphs)
        planned = Planner(Costs(curve, curve, CostCurve({1: 1e-4}), CostCurve({1: 1e-4})))
        play(planned, 16, 0.9, 40)
        planned.plan(16, ready(16))
        kept = planned.cut(numbered([(np.log([0.9, 0.25, 0.05]).tolist(), [1, 1, 1])] * 16))
        checked.append(16 + sum(kept))
    assert checked == [32, 40]


def test_what_plain_steps_cost_is_asked_once_for_neighbouring_batches() -> None:
    """Requests come and go: 12 and 13 of them need no measurement each."""
    planned = planner(IDLE_SHAPE)
    keep(planned, 12, 1.0, 200)
    asked = [mode for many in (10, 11, 13, 14) for mode in keep(planned, many, 1.0, 16)]
    assert asked.count(Mode.PLAIN) == 0
    assert Mode.PLAIN in keep(planned, 1, 1.0, 16)
