"""How long an answer that has come this far will still be."""

from __future__ import annotations

import bisect
from collections import deque
from itertools import accumulate

_WINDOW = 256
_PRIOR_ANSWERS = 4
_PRIOR_MORE = 32.0
"""Tokens an answer is expected to go on for, before any was seen."""


class AnswerLengths:
    """The mean residual length over recent answers: of those longer than this one so far, how much longer they were."""

    def __init__(self) -> None:
        """No answer seen."""
        self._lengths: deque[int] = deque(maxlen=_WINDOW)
        self._ascending: list[int] = []
        self._sums = [0]
        """Of the so many longest."""

    def observe(self, tokens: int) -> None:
        """An answer ended with so many tokens."""
        self._lengths.append(tokens)
        self._ascending = sorted(self._lengths)
        self._sums = [0, *accumulate(reversed(self._ascending))]

    def remaining(self, so_far: int, most: int) -> float:
        """Expected further tokens of an answer of `so_far` tokens that may get `most` more."""
        longer = len(self._ascending) - bisect.bisect_right(self._ascending, so_far)
        more = self._sums[longer] - longer * so_far
        expected = (more + _PRIOR_ANSWERS * _PRIOR_MORE) / (longer + _PRIOR_ANSWERS)
        return min(expected, float(most))
