"""Comparing the answers of engines: what is the same, what is a tie, and what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.tiny.checkpoints import build
from vllm_specvlm.selftest import exactness
from vllm_specvlm.selftest.answering import Answers
from vllm_specvlm.selftest.check import Outcome

PLAIN = Answers(
    tokens=[[5, 6, 7], [8, 9]],
    likely=[[{"5": -0.1, "4": -3.0}, {"6": -0.7, "3": -0.9}, {"7": 0.0}], [{"8": 0.0}, {"9": -0.2, "2": -5.0}]],
    ways=[],
    trees=0,
    accepted=0,
    failures=0,
)
OURS = dataclasses.replace(PLAIN, likely=[], ways=["a kernel"], trees=4, accepted=3)


@pytest.mark.parametrize(
    ("changes", "dtype", "outcome", "says"),
    [
        ({}, "float32", Outcome.PASSED, "0 of 2 answers differ"),
        ({"tokens": [[5, 3, 1], [8, 9]]}, "bfloat16", Outcome.PASSED, "1 of 2 answers differ, at tokens up to 0.200"),
        ({"tokens": [[5, 3, 1], [8, 9]]}, "float16", Outcome.FAILED, "1 of 2"),
        ({"tokens": [[5, 6, 7], [8, 2]]}, "bfloat16", Outcome.FAILED, "4.800"),
        ({"tokens": [[5, 6, 7], [8, 77]]}, "bfloat16", Outcome.FAILED, "inf"),
        ({"tokens": [[5, 6], [8, 9]]}, "bfloat16", Outcome.FAILED, "inf"),
        ({"accepted": 0}, "float32", Outcome.FAILED, "nothing was accepted"),
        ({"failures": 1}, "float32", Outcome.FAILED, "the drafter failed"),
    ],
)
def test_judgement(changes: dict[str, Any], dtype: str, outcome: Outcome, says: str) -> None:
    found = exactness.judge("answers", dtype, PLAIN, dataclasses.replace(OURS, **changes))
    assert found.outcome is outcome
    assert says in found.detail


@pytest.mark.slow
def test_engines_of_tiny_models() -> None:
    """The whole of it: engines in processes of their own, a draft with its target's weights."""
    target = str(build("llava"))
    (found,) = exactness.check(target, target, "float32", eager_only=True, quick=True, verbose=False)
    assert found.outcome is Outcome.PASSED, found.detail
    assert found.figures["different"] == 0
    assert found.figures["accepted"] > 10
    assert found.figures["ways"] == ["CPU kernel"]


def test_an_engine_that_fails_says_why(tmp_path: Any) -> None:
    """Without a model there."""
    missing = str(tmp_path / "nothing")
    with pytest.raises(RuntimeError, match="the engine failed: "):
        list(exactness.check(missing, missing, "float32", eager_only=True, quick=True, verbose=False))
