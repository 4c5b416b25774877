"""What a grammar leaves of one request's drafts: the formula of docs/planner.md."""

from __future__ import annotations

import pytest

from vllm_specvlm.schedule.grammar_share import GrammarShare


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
