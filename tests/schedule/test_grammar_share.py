"""What a grammar leaves of one request's drafts: the formula of docs/planner.md, and who gets trees by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.schedule.test_planner import IDLE_SHAPE, READY, planner, play
from vllm_specvlm.schedule.grammar_share import GrammarShare
from vllm_specvlm.schedule.plan import Candidate, Mode
from vllm_specvlm.schedule.planner import Planner


def test_the_formula() -> None:
    share = GrammarShare()
    assert share.value == 1.0
    share.observe([0.6, 0.3], 0)
    assert share.value == pytest.approx(1 / 1.9)
    share.observe([0.5, 0.4, 0.6], 2)
    assert share.value == pytest.approx((1 + 2) / (1 + 0.9 * 0.9 + 1.5))
    share.rest()
    assert share.value == pytest.approx((1 + 2 * 63 / 64) / (1 + (0.9 * 0.9 + 1.5) * 63 / 64))


def test_more_than_was_expected_is_what_others_get() -> None:
    share = GrammarShare()
    share.observe([0.1, 0.1], 1)
    assert share.value == 1.0


def test_a_low_share_is_thought_better_of() -> None:
    share = GrammarShare()
    for _ in range(20):
        share.observe([0.9], 0)
    low = share.value
    assert low < 0.15
    for _ in range(200):
        share.rest()
    assert share.value > 4 * low


def spoiled(requests: int) -> Planner:
    """It has seen good trees."""
    planned = planner(IDLE_SHAPE)
    play(planned, requests, 0.9, 40)
    return planned


def chosen(planned: Planner, candidates: list[Candidate]) -> set[int]:
    """Of some steps, all who got trees for more than a look."""
    plans = [planned.plan(len(candidates), candidates) for _ in range(12)]
    return {i for plan in plans if plan.mode is Mode.TREES for i in plan.chosen}


def test_who_is_left_nothing_gets_no_tree_and_others_keep_theirs() -> None:
    low, high = replace(READY, share=0.1, typical=False), replace(READY, share=0.8, typical=False)
    assert chosen(spoiled(4), [READY, low, READY, high]) == {0, 2, 3}
    assert chosen(spoiled(4), [READY, READY, READY, READY]) == {0, 1, 2, 3}, "control"


def test_others_are_read_as_if_nobody_had_a_grammar() -> None:
    """A long backlog is worth its reading or not by what the request itself would get."""
    low = replace(READY, share=0.0, typical=False)
    for remaining, wanted in ((4000.0, {0}), (2.0, set())):
        new = replace(READY, backlog=5000, remaining=remaining)
        assert chosen(spoiled(4), [new, low, low, low]) == wanted
        assert 0 in chosen(spoiled(4), [new, READY, READY, READY]) or not wanted


def test_alone_it_is_decoded_plainly_and_looked_at() -> None:
    planned, low = spoiled(1), replace(READY, share=0.1, typical=False)
    modes = [mode for mode, _ in play(planned, 1, 0.1, 300, low)]
    assert Mode.TREES not in modes
    assert modes.count(Mode.PROBE) >= 1 and modes.count(Mode.PLAIN) > 240


def test_shares_count_once_for_each_level() -> None:
    """The expectation by hand, of trees of two nodes behind each other."""
    planned = planner(IDLE_SHAPE)
    for _ in range(5):
        planned.plan(1, [READY])
        planned.passed(1, 1, 0.9)
        planned.cut([([np.log(0.9), np.log(0.9 * 0.8)], [1, 2])], [True])
    costs = planned.costs
    one = costs.feed.at(1) + planned.overhead
    two = one + costs.draft.at(1)
    for share in (1.0, 0.5, 0.1):
        first, second = share * 0.9, share**2 * 0.9 * 0.8
        wanted = (
            (1 + first) / (one + costs.tree.at(2)),
            (1 + first) / (two + costs.tree.at(2)),
            (1 + first + second) / (two + costs.tree.at(3)),
        )
        assert planned._expect(1, [share]) == pytest.approx(max(wanted))
