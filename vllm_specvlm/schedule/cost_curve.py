"""Seconds of a pass as a function of its rows, learned from passes as they happen."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_specvlm.schedule.reading import Reading
from vllm_specvlm.schedule.stretch import Stretch

Floats = npt.NDArray[np.float64]

# fmt: off
KNOTS = np.array(
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256,
     320, 384, 448, 512, 640, 768, 896, 1024, 1536, 2048, 4096, 8192],
    dtype=np.float64,
)
# fmt: on
_KNOTS: list[float] = KNOTS.tolist()
_PER_GAP: list[float] = (1 / np.diff(KNOTS)).tolist()
_LOG_KNOTS = np.log(KNOTS)
_MIDDLES = [float(m) for m in (KNOTS[1:] + KNOTS[:-1]) / 2]
_LEAST, _MOST = 1e-9, 1e6
"""Seconds that a pass may take at all."""
_LEAST_SHARE = 0.1
"""Of a pass, that is not attention."""
_NEAR, _FAR = math.log(8), math.log(64)
"""A correction is believed up to eight times as many or few rows, and less and less up to 64 times: what 600 rows with
pictures in them took says nothing of two."""


class CostCurve:
    """A prior shape, measured when the engine starts, times a correction learned per stretch of rows.

    The correction also absorbs what the prior leaves out (the host's share, attention over the traffic's contexts where
    `reading` does not know it). It spreads to stretches that were never seen from the nearest ones that were: to larger
    ones in seconds, not in proportion, as what looks too dear is never tried.
    """

    def __init__(self, prior: Mapping[int, float], graphs: Sequence[int] = (), reading: Reading | None = None) -> None:
        """A curve that has seen nothing.

        Args:
            prior: seconds by rows, at least one entry.
            graphs: rows of captured graphs, to which passes are padded.
            reading: what the context adds (see `attend`); nothing if it is not known.

        Raises:
            ValueError: rows or seconds are not positive.
        """
        if not prior or min(prior) < 1 or not all(_LEAST < each < _MOST for each in prior.values()):
            raise ValueError(
                f"A cost curve needs seconds between {_LEAST:g} and {_MOST:g} for positive rows, got {dict(prior)}; "
                "measure again."
            )
        if not all(1 <= size <= _KNOTS[-1] for size in graphs):
            raise ValueError(f"Graphs of {list(graphs)} rows are none; measure again.")
        self.graphs = tuple(sorted(graphs))
        """A pass of no more rows than the last one has costs what the next one of these costs."""
        self.reading = reading or Reading()
        self._shared = self._each = 0.0
        self._rows = np.array(sorted(prior), dtype=np.float64)
        # A pass over fewer rows is never dearer: what looks so met a busy moment.
        seconds = np.array([prior[row] for row in sorted(prior)], dtype=np.float64)
        self._seconds = np.minimum.accumulate(seconds[::-1])[::-1]
        self._stretches = [Stretch() for _ in KNOTS]
        self._seen: list[int] = []
        self._believed = np.zeros(len(KNOTS))
        self._steps = 0
        self._stale = True
        self._measured = self._prior(KNOTS)
        self._at_knots = self._measured
        self._values: list[float] = self._at_knots.tolist()

    def attend(self, requests: int, context: float) -> None:
        """A step begins: passes are of so many requests, which have so many tokens before them in the mean."""
        self._steps += 1
        self._shared = self.reading.per_request * requests * context
        self._each = self.reading.per_row * context

    def observe(self, rows: int, seconds: float, *, one_kind: bool = True) -> None:
        """A pass over `rows` rows took so long; for `one_kind` see `Stretch.observe`."""
        seconds = max(seconds - self._shared - self._each * rows, _LEAST_SHARE * seconds, _LEAST)
        rows = self._padded(rows)
        knot = _nearest(rows)
        found = math.log(seconds / float(self._prior(np.array([rows], dtype=np.float64))[0]))
        stretch, alone = self._stretches[knot], not self._seen
        if not stretch.count:
            stretch.correction = float(self._corrections()[knot])
        if stretch.observe(found, self._steps, alone=alone, one_kind=one_kind):
            if stretch.count == 1:
                self._see([*self._seen, knot])
            self._stale = True

    def seen(self, rows: int) -> int:
        """How many passes of about so many rows were observed."""
        return self._stretches[_nearest(rows)].count

    def doubted(self, rows: int) -> bool:
        """Whether the last pass of about so many rows lay far off: the next one decides whether that is so."""
        return bool(self._stretches[_nearest(self._padded(rows))].doubts)

    def seen_between(self, least: int, most: int) -> int:
        """How many passes of about so many rows were observed."""
        first, last = _nearest(self._padded(least)), _nearest(self._padded(most))
        return sum(stretch.count for stretch in self._stretches[first : last + 1])

    def at(self, rows: int) -> float:
        """Expected seconds of a pass. (`over` in plain Python, which is quicker for one number.)"""
        if self._stale:
            self._refresh()
        attention = self._shared + self._each * rows
        if self.graphs:
            rows = self._padded(rows)
        if rows >= _KNOTS[-1]:
            return attention + self._values[-1] * rows / _KNOTS[-1]
        if rows <= 1:
            return attention + self._values[0]
        left = bisect.bisect_right(_KNOTS, rows) - 1
        first = self._values[left]
        return attention + first + (rows - _KNOTS[left]) * _PER_GAP[left] * (self._values[left + 1] - first)

    def over(self, rows: Floats) -> Floats:
        """Expected seconds, float64 [...] for float64 [...]."""
        if self._stale:
            self._refresh()
        padded = rows
        if self.graphs:
            graphs = np.array(self.graphs, dtype=np.float64)
            padded = np.maximum(rows, graphs[np.minimum(np.searchsorted(graphs, rows), len(graphs) - 1)])
        seconds: Floats = np.interp(padded, KNOTS, self._at_knots)
        if rows.max(initial=0.0) > _KNOTS[-1]:  # beyond the last knot as many times dearer as there are more rows
            seconds *= np.maximum(rows / _KNOTS[-1], 1.0)
        if self._shared or self._each:
            seconds += self._shared + self._each * rows
        return seconds

    def _see(self, knots: Sequence[int]) -> None:
        """Passes of these stretches were observed: others' corrections are believed the less the farther they are."""
        self._seen = sorted(knots)
        away = np.abs(_LOG_KNOTS[:, None] - _LOG_KNOTS[self._seen]).min(axis=1, initial=_FAR)
        self._believed = np.clip((_FAR - away) / (_FAR - _NEAR), 0.0, 1.0)

    def _padded(self, rows: int) -> int:
        if not self.graphs or rows > self.graphs[-1]:
            return rows
        return self.graphs[bisect.bisect_left(self.graphs, rows)]

    def _refresh(self) -> None:
        seconds = self._measured * np.exp(self._corrections())
        if self._seen:  # what is only inferred never speaks against what was seen
            first, last = self._seen[0], self._seen[-1]
            np.minimum(seconds[:first], seconds[first], out=seconds[:first])
            np.maximum(seconds[last:], seconds[last], out=seconds[last:])
            for one, next_ in pairwise(self._seen):
                if seconds[one] <= seconds[next_]:
                    between = seconds[one:next_]
                    np.minimum(np.maximum(between, seconds[one], out=between), seconds[next_], out=between)
        # More rows never cost less: where it looks so, the truth is between the two.
        self._at_knots = (np.maximum.accumulate(seconds) + np.minimum.accumulate(seconds[::-1])[::-1]) / 2
        self._values = self._at_knots.tolist()
        self._stale = False

    def as_dict(self) -> dict[str, Any]:
        """The curve at the knots, without context, and how often each was observed, for a profile file."""
        self._refresh()
        return {
            "rows": [int(knot) for knot in KNOTS],
            "seconds": [float(f"{s:.6g}") for s in self._values],
            "observed": [stretch.count for stretch in self._stretches],
            "graphs": list(self.graphs),
            **self.reading.as_dict(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CostCurve:
        """A curve whose prior is the saved one, as sure of it as it was. Raises ValueError if it is none."""
        rows, seconds, graphs = saved.get("rows"), saved.get("seconds"), saved.get("graphs", [])
        if not isinstance(rows, list) or not isinstance(seconds, list) or not isinstance(graphs, list):
            raise ValueError("A saved cost curve needs lists of 'rows', 'seconds' and 'graphs'; calibrate again.")
        if len(rows) != len(seconds):
            raise ValueError("A saved cost curve needs 'rows' and 'seconds' of one length; calibrate again.")
        try:
            prior = {int(row): float(second) for row, second in zip(rows, seconds, strict=True)}
            curve = cls(prior, [int(size) for size in graphs], Reading.from_dict(saved))
            observed = [int(count) for count in saved.get("observed", ())]
        except (OverflowError, TypeError) as error:
            raise ValueError("A saved cost curve holds something that is no number; calibrate again.") from error
        if not all(0 <= count < 1 << 60 for count in observed):
            raise ValueError("A saved cost curve was observed less than never or more than ever; calibrate again.")
        if rows == KNOTS.tolist() and len(observed) == len(rows):
            for stretch, count in zip(curve._stretches, observed, strict=True):
                stretch.count = count
            curve._see([knot for knot, count in enumerate(observed) if count])
        return curve

    def _prior(self, rows: Floats) -> Floats:
        """Between what was measured, and beyond: as the last stretch went on, by half of each row's share at least."""
        last, seconds = self._rows[-1], self._seconds[-1]
        slope = seconds / last / 2
        if len(self._rows) > 1:
            slope = max(slope, (seconds - self._seconds[-2]) / (last - self._rows[-2]))
        found: Floats = np.interp(rows, self._rows, self._seconds) + slope * np.maximum(rows - last, 0.0)
        return found

    def _corrections(self) -> Floats:
        """Of each stretch, [knots]: between those that were seen, and fading away from the nearest of them.

        What passes of the most rows seen took longer than expected (the host, attention) is added to those of more.
        """
        if not self._seen:
            return np.zeros(len(KNOTS))
        seen = [self._stretches[knot].correction for knot in self._seen]
        corrections: Floats = self._believed * np.interp(_LOG_KNOTS, _LOG_KNOTS[self._seen], seen)
        last = self._seen[-1]
        longer = self._measured[last] * max(math.expm1(corrections[last]), 0.0)
        corrections[last:] = np.minimum(corrections[last:], np.log1p(longer / self._measured[last:]))
        return corrections


def _nearest(rows: int) -> int:
    return min(bisect.bisect_left(_MIDDLES, rows), len(_MIDDLES))
