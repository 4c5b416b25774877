"""Trees that are grown to learn what they are worth, and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_specvlm.schedule.outlooks import LEARNING
from vllm_specvlm.schedule.plan import Candidate

_SHARE = 0.01
"""Of the time of all steps may be lost by looking."""
_DEAREST = 10
"""A look counts for so many times what it should have lost at most: the rest was a busy moment."""


class Looks:
    """Who is looked at, and when: as soon as what earlier looks lost has been earned.

    The first ones are taken before anything was earned for them, and paid afterwards.
    """

    def __init__(self) -> None:
        """Nobody was looked at."""
        self._credit = self._price = 0.0
        self._taken = 0

    def next(self, candidates: Sequence[Candidate], among: Sequence[int]) -> int | None:
        """Whose turn it is of these indices, None if nobody's.

        Another one every time, as one request's trees are not the traffic's; every second time the one that is fed at
        the least cost, as reading a prompt takes as long as many looks.
        """
        if not among or (self._taken >= LEARNING and self._credit < 0.0):
            return None
        first = self._taken // 2 % len(among)
        order = [*among[first:], *among[:first]]
        return min(order, key=lambda i: candidates[i].unread) if self._taken % 2 else order[0]

    def take(self, price: float) -> None:
        """A look that should lose so many seconds."""
        self._taken += 1
        self._credit -= price
        self._price = price

    def lost(self, seconds: float) -> None:
        """What the last look came to.

        Even one that gained costs half its price: what pays is drafted for anyway, so it only seemed to.
        """
        self._credit += self._price - min(max(seconds, self._price / 2), _DEAREST * self._price)

    def earn(self, seconds: float) -> None:
        """A step took so long."""
        self._credit = min(self._credit + _SHARE * seconds, 2 * self._price)
