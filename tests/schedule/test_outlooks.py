"""Requests whose trees are worth more than others', and the planner that tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.schedule.plays import IDLE_SHAPE, READY, numbered, planner, ready
from vllm_specvlm.schedule.looks import Looks
from vllm_specvlm.schedule.outlooks import Outlooks, Prospect, prospect
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode, Plan
from vllm_specvlm.schedule.planner import Planner

WORDS, PICTURE = Kind(picture=False), Kind(picture=True)
DEAR_ROWS = {1: 0.002, 64: 0.020}


def grown(
    probabilities: Sequence[Sequence[float]],
    depths: Sequence[Sequence[int]],
    rows: Sequence[float] = (),
) -> Prospect:
    """The prospect of trees of these nodes."""
    tree = np.repeat(np.arange(len(depths)), [len(each) for each in depths])
    score = np.log([p for each in probabilities for p in each])
    return prospect(score, np.array([d for each in depths for d in each]), tree, len(depths), rows)


def step(planned: Planner, candidates: Sequence[Candidate], accepted: dict[str, float]) -> Plan:
    """A step in which each request's tree is a chain of three with its own probability of each next one."""
    plan = planned.plan(len(candidates), candidates)
    came, seconds = float(len(candidates)), planned.costs.plain.at(len(candidates))
    if plan.mode is not Mode.PLAIN:
        planned.passed(1, len(plan.chosen), 1.0)
        planned.passed(2, len(plan.chosen), 1.0)
        law = [accepted[candidates[i].request_id] for i in plan.chosen]
        kept = planned.cut(numbered([([np.log(p), 2 * np.log(p), 3 * np.log(p)], [1, 2, 3]) for p in law]))
        came += sum(float(p**d) for p, n in zip(law, kept, strict=True) for d in range(1, n + 1))
        seconds = planned.overhead + planned.costs.tree.at(len(candidates) + sum(kept))
        seconds += planned.costs.feed.at(len(plan.chosen))
        seconds += sum(planned.costs.draft.at(rows) for rows in planned._rows)
    planned.achieved(len(candidates), came, seconds)
    return plan


def trees_of(planned: Planner, candidates: Sequence[Candidate], accepted: dict[str, float], steps: int) -> list[float]:
    """Share of the steps with trees in which each request had one."""
    plans = [step(planned, candidates, accepted) for _ in range(steps)]
    with_trees = [plan for plan in plans if plan.mode is Mode.TREES]
    assert len(with_trees) > steps / 2
    return [sum(i in plan.chosen for plan in with_trees) / len(with_trees) for i in range(len(candidates))]


def test_who_is_accepted_little_gets_few_trees_and_others_keep_theirs() -> None:
    planned = planner(IDLE_SHAPE, DEAR_ROWS)
    accepted = {"0": 0.9, "1": 0.02, "2": 0.9, "3": 0.7}
    for _ in range(40):
        step(planned, ready(4), accepted)
    had = trees_of(planned, ready(4), accepted, 200)
    assert min(had[0], had[2], had[3]) > 0.95
    assert 0.0 < had[1] < 0.3, "left out, and looked at now and then"


def test_who_gets_better_is_found_out() -> None:
    planned = planner(IDLE_SHAPE, DEAR_ROWS)
    for _ in range(100):
        step(planned, ready(4), {"0": 0.9, "1": 0.02, "2": 0.9, "3": 0.9})
    had = trees_of(planned, ready(4), {str(i): 0.9 for i in range(4)}, 400)
    assert had[1] > 0.5


def test_new_requests_are_expected_to_be_like_those_of_their_kind() -> None:
    """A long prompt is read for the draft where answers about pictures gain, and not where words alone do not."""
    planned = planner(IDLE_SHAPE, {1: 0.002, 64: 0.020, 1024: 0.040})
    kinds = [replace(each, kind=PICTURE if i % 2 else WORDS) for i, each in enumerate(ready(4))]
    for _ in range(200):
        step(planned, kinds, {"0": 0.02, "1": 0.9, "2": 0.02, "3": 0.9})
    for kind, wanted in ((PICTURE, True), (WORDS, False)):
        new = Candidate("new", 800, 200.0, kind)
        plans = [planned.plan(5, [*kinds, new]) for _ in range(20)]
        read = [4 in plan.chosen for plan in plans if plan.mode is Mode.TREES]
        assert all(read) if wanted else not any(read)


def test_where_only_one_kind_pays_batches_of_the_other_are_plain() -> None:
    planned = planner(IDLE_SHAPE, DEAR_ROWS)
    words = [replace(each, kind=WORDS) for each in ready(3)]
    pictures = [replace(each, request_id=each.request_id + "p", kind=PICTURE) for each in ready(3)]
    accepted = {each.request_id: 0.02 for each in words} | {each.request_id: 0.9 for each in pictures}
    modes: dict[str, list[Mode]] = {"words": [], "pictures": []}
    for _ in range(100):
        modes["words"].append(step(planned, words, accepted).mode)
        modes["pictures"].append(step(planned, pictures, accepted).mode)
    assert modes["words"][50:].count(Mode.TREES) <= 1
    assert modes["pictures"][50:].count(Mode.TREES) > 40


def test_kinds_never_seen_begin_as_everybody() -> None:
    outlooks = Outlooks()
    good = grown([[0.9]], [[1]])
    assert not outlooks.ready
    for _ in range(5):
        outlooks.learn([READY], good)
    assert outlooks.ready
    for other in (replace(READY, request_id="1"), Candidate("1", 0, 9.0, PICTURE)):
        assert outlooks.of([other]).values == pytest.approx(good.values)


def test_a_request_is_known_better_from_tree_to_tree() -> None:
    """From what its kind is worth to what it is worth; its kind moves far less."""
    outlooks = Outlooks()
    trees = {p: grown([[p]], [[1]]) for p in (0.9, 0.1)}
    others = ready(20)
    for _ in range(5):
        outlooks.learn(others[1:], grown([[0.9]] * 19, [[1]] * 19))
    seen = []
    for _ in range(12):
        outlooks.learn(others[:1], trees[0.1])
        seen.append(float(outlooks.of(others[:1]).accepted.sum()))
    assert seen == sorted(seen, reverse=True) and 0.6 < seen[0] < 0.9 and seen[-1] < 0.2
    assert float(outlooks.of([replace(READY, request_id="new")]).accepted.sum()) > 0.6


def test_what_is_over_leaves_nothing_behind() -> None:
    outlooks = Outlooks()
    tree = grown([[0.5]], [[1]])
    for i in range(1000):
        outlooks.learn([replace(READY, request_id=str(i))], tree)
        outlooks.forget(str(i))
    assert len(outlooks._table) == 16 and len(outlooks._row) == np.count_nonzero(outlooks._seen) == 2
    outlooks.forget("never there")
    for i in range(100):
        outlooks.learn([replace(READY, request_id=str(i))], tree)
    assert len(set(outlooks._row.values())) == 102
    assert outlooks.of([replace(READY, request_id="7")]).values == pytest.approx(tree.values)


def test_a_prospect_has_each_node_once() -> None:
    found = grown([[0.9, 0.4, 1e-7], [1.0], []], [[1, 2, 40], [1], []], [2, 1])
    assert found.nodes.sum(axis=(1, 2)).tolist() == [3, 1, 0]
    assert found.accepted.sum(axis=(1, 2)).tolist() == pytest.approx([1.3 + 1e-7, 1.0, 0.0])
    assert found.nodes[0, 0].sum() == found.nodes[0, 1].sum() == found.nodes[0, -1].sum() == 1
    assert found.rows[:, 0].tolist() == [1.0, 1.0, 1.0]
    assert found.rows[:, 1].tolist() == [2.0, 0.0, 0.0], "rows of a pass are theirs who have nodes behind it"


def test_trees_without_a_pass_cost_none() -> None:
    planned = planner(IDLE_SHAPE)
    known, asked = grown([[0.9, 0.5], [0.9]], [[0, 0], [1]]), grown([[0.9, 0.5]], [[1, 1]])
    assert known.nodes[:, 0].sum(axis=1).tolist() == [2, 1] and known.rows[:, 0].tolist() == [0.0, 1.0]
    alone = replace(known, values=known.values[:1])
    wanted = 2.4 / (planned.overhead + planned.costs.tree.at(3))
    assert planned._goodput(1, alone)[0] == pytest.approx(wanted)
    assert planned._goodput(1, asked)[0] < wanted


@pytest.mark.parametrize("requests", [1, 6])
def test_goodput_is_the_formulas(requests: int) -> None:
    """The expectation by hand, of chains of two; of all cuts the best."""
    planned = planner(IDLE_SHAPE)
    trees = grown([[0.9, 0.5]], [[1, 2]], [1])
    costs = planned.costs
    one = costs.feed.at(1) + planned.overhead
    wanted = [
        (requests + 0.9) / (one + costs.tree.at(requests + 1)),
        (requests + 1.4) / (one + costs.draft.at(1) + costs.tree.at(requests + 2)),
    ]
    assert planned._goodput(requests, trees)[0] == pytest.approx(max(wanted))


def test_a_pass_that_is_seldom_wanted_costs_its_part() -> None:
    planned = planner({1: 0.010, 512: 0.010}, {1: 0.004, 64: 0.004})
    always = grown([[0.9, 0.5]], [[1, 2]], [1])
    seldom = replace(always, values=always.values.copy())
    seldom.nodes[0, 1] *= 0.25
    seldom.accepted[0, 1] *= 0.25
    seldom.rows[0, 1] *= 0.25
    one = 0.004 + planned.overhead + 0.010
    assert planned._goodput(1, always)[0] == pytest.approx(max(1.9 / one, 2.4 / (one + 0.004)))
    assert planned._goodput(1, seldom)[0] == pytest.approx(max(1.9 / one, (1.9 + 0.125) / (one + 0.001)))


def test_a_first_pass_is_priced_by_what_there_is_to_compute() -> None:
    """Not by what there was when the trees were seen. Of a prompt, the reading of which is priced apart, by what a tree
    leaves behind: here 1.4 accepted tokens and one more."""
    planned = planner(IDLE_SHAPE, DEAR_ROWS)
    planned._outlooks.learn([replace(READY, backlog=8)], grown([[0.9, 0.5]], [[1, 2]], [1]))

    def first(backlog: int) -> float:
        return float(planned._outlooks.of([replace(READY, backlog=backlog)]).rows[0, 0])

    assert [first(backlog) for backlog in (0, 3, 16)] == [1.0, 4.0, 17.0]
    assert first(17) == first(900) == pytest.approx(3.4)
    goodput = [planned._goodput(1, planned._outlooks.of([replace(READY, backlog=rows)]))[0] for rows in (0, 3, 900, 8)]
    assert goodput[0] > goodput[2] > goodput[1] > goodput[3]


READING = {1: 0.002, 64: 0.004, 1024: 0.010}
DEAR_READING = {1: 0.002, 64: 0.004, 1024: 2.0}


@pytest.mark.parametrize(
    ("draft", "new", "breaks"), [(READING, True, False), (READING, False, True), (DEAR_READING, True, False)]
)
def test_reading_for_a_first_tree_breaks_no_promise(draft: dict[int, float], new: bool, breaks: bool) -> None:
    """However dear it is; what is read again and again is no first tree's, and does."""
    planned = planner(IDLE_SHAPE, draft)
    for _ in range(20):
        step(planned, ready(4), {str(i): 0.9 for i in range(4)})
    before, trees = planned._trust_at(4), 0
    feed = planned.costs.feed
    for number in range(40):
        newest = replace(READY, request_id=f"new {number}" if new else "3", backlog=400, remaining=1e6)
        plan = planned.plan(4, [*ready(3), newest])
        if plan == Plan(Mode.TREES, (0, 1, 2, 3)):
            trees += 1
            planned.cut(numbered([([np.log(0.9)], [1])] * 4))
            planned.achieved(4, 20.0, 20.0 / planned._promised + feed.at(404) - feed.at(4))
    assert trees > 30
    after = planned._trust_at(4)
    assert after < before - 0.02 if breaks else after == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("accepted", [0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6])
@pytest.mark.parametrize("requests", [1, 4, 16])
def test_catching_up_again_and_again_does_not_lose(accepted: float, requests: int) -> None:
    """A draft whose backlog grows while it is not asked, at the edge of paying; prompts of 40, answers of 200."""
    planned = planner(IDLE_SHAPE, DEAR_ROWS)
    costs, plain = planned.costs, planned.costs.plain.at(requests)
    batch = [replace(each, backlog=40, remaining=200.0 - 10 * i) for i, each in enumerate(ready(requests))]
    tokens = seconds = 0.0
    for number in range(3000):
        plan = planned.plan(requests, batch)
        took, gained, left = plain, [0.0] * requests, [each.backlog + 1 for each in batch]
        if plan.mode is not Mode.PLAIN:
            scores = [depth * float(np.log(accepted)) for depth in (1, 2, 3)]
            kept = planned.cut(numbered([(scores, [1, 2, 3])] * len(plan.chosen)))
            took = costs.feed.at(sum(left[i] for i in plan.chosen)) + 2 * costs.draft.at(len(plan.chosen))
            took += planned.overhead + costs.tree.at(requests + sum(kept))
            for i, count in zip(plan.chosen, kept, strict=True):
                gained[i] = sum(accepted**depth for depth in range(1, count + 1))
                left[i] = 1 + round(gained[i])
        planned.achieved(requests, requests + sum(gained), took)
        for i, each in enumerate(batch):
            batch[i] = replace(each, backlog=left[i], remaining=each.remaining - 1.0 - gained[i])
            if batch[i].remaining < 1.0:
                planned.forget(each.request_id)
                batch[i] = Candidate(f"{i} {number}", 40, 200.0, each.kind)
        if number >= 300:
            tokens, seconds = tokens + requests + sum(gained), seconds + took
    assert tokens / seconds > 0.985 * requests / plain


def test_looks_have_to_be_earned() -> None:
    looks, batch = Looks(), ready(8)
    for _ in range(5):
        assert looks.next(batch, range(8)) is not None
        looks.take(0.01)
    assert looks.next(batch, range(8)) is None
    looks.earn(4.9)
    assert looks.next(batch, range(8)) is None
    looks.earn(0.2)
    assert looks.next(batch, range(8)) is not None
    assert looks.next(batch, []) is None
    for _ in range(2):
        looks.take(0.01)
        looks.lost(-1.0)
    assert looks.next(batch, range(8)) is None, "whatever they gave"


def test_kinds_never_looked_at_come_first() -> None:
    planned = planner({1: 0.010, 2: 0.020, 64: 0.640})
    for _ in range(5):
        step(planned, ready(7), dict.fromkeys("0123456", 0.1))
    batch = [*ready(7), Candidate("p", 0, 9.0, PICTURE)]
    for _ in range(2000):
        plan = step(planned, batch, dict.fromkeys("0123456p", 0.1))
        if plan.mode is Mode.PROBE:
            break
    assert plan.chosen == (7,)
