"""What passes over about so many rows cost beside what was expected of them, learned from passes as they happen."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

_SLOWEST = 0.05
"""Weight of a new observation once there are many: a mean over some twenty passes."""
_STALE = 16
_QUICKEST = 0.25
"""So many steps since the last one add as much to that weight, up to this: machines do not stay what they were."""
_OUTLIER = 0.3
"""How far, as a logarithm, an observation may lie off what is expected: a busy moment is no new law."""
_NO_OUTLIERS = 3
"""So many of them in a row are one. The first pass of a stretch counts as just not far off all the same: what was
expected of it is only inferred, and large passes, each of another stretch, would wait long for three in a row."""
_FASTER = 0.5
"""Least weight of one that lies as far below: nothing makes a pass faster than it is, and what is thought dear is tried
so seldom that three in a row may never come."""
_KINDS = 0.7
"""How far, as a logarithm, one that may be of another kind counts: a pass that warms something up is not believed."""
_NEIGHBOURS = 2
"""The correction that a stretch begins with is that of those beside it and counts as so many observations: the first
pass may have met a busy moment, and what is thought dear is not tried again."""


@dataclass(slots=True)
class Stretch:
    """A mean of logarithms that follows what changes and does not follow what lies far off."""

    correction: float = 0.0
    """The logarithm of what passes took for each second expected."""
    count: int = 0
    """How many passes it is learned from."""
    last: int = 0
    """The step of the latest of them."""
    doubts: list[float] = field(default_factory=list)
    """Passes since then that lay far off, all of them on one side."""

    def observe(self, found: float, step: int, *, alone: bool, one_kind: bool) -> bool:
        """A pass took exp(`found`) times what was expected; returns whether anything was learned from it.

        Args:
            found: a logarithm.
            step: in which it was, ascending.
            alone: nothing was ever observed, here or beside, so that nothing is far off.
            one_kind: passes of as many rows do the same work. Of several kinds (with pictures and without) none is far
                off, and each counts as at most about twice or half as long as expected.
        """
        off = found - self.correction
        idle = step - self.last if self.count else 0
        weight = max(
            1 / (self.count + 1 + (0 if alone else _NEIGHBOURS)),
            min(_SLOWEST * (1 + idle / _STALE), _QUICKEST),
        )
        if not one_kind:
            off = min(max(off, -_KINDS), _KINDS)
        elif alone or abs(off) <= _OUTLIER:
            self.doubts.clear()
        else:
            if self.doubts and (self.doubts[-1] > self.correction) != (off > 0):
                self.doubts.clear()
            self.doubts.append(found)
            if len(self.doubts) == _NO_OUTLIERS:
                off, weight = statistics.median(self.doubts) - self.correction, 1.0
                self.doubts.clear()
            elif off < 0:
                weight = max(weight, _FASTER)
            elif not self.count:
                off = _OUTLIER
            else:
                return False
        self.correction += off * weight
        self.count += 1
        self.last = step
        return True
