from __future__ import annotations

import pytest

from vllm_specvlm.schedule.answer_lengths import AnswerLengths


def test_the_prior_is_bounded_by_what_is_allowed() -> None:
    assert AnswerLengths().remaining(0, 500) == 32
    assert AnswerLengths().remaining(0, 7) == 7


def test_short_answers_are_expected_to_stay_short() -> None:
    lengths = AnswerLengths()
    for _ in range(200):
        lengths.observe(5)
    assert lengths.remaining(1, 500) == pytest.approx(4, abs=1)
    # An answer longer than any before is judged by the prior.
    assert lengths.remaining(6, 500) == 32


def test_of_two_kinds_the_longer_one_remains() -> None:
    lengths = AnswerLengths()
    for _ in range(100):
        lengths.observe(4)
        lengths.observe(100)
    assert lengths.remaining(1, 500) == pytest.approx((3 + 99) / 2, rel=0.05)
    assert lengths.remaining(10, 500) == pytest.approx(90, rel=0.05)
