"""What the context adds to a pass: every row attends to all tokens before it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_BUCKET = 64
"""Tokens of context that are taken for the same."""


@dataclass(frozen=True, slots=True)
class TimedPass:
    """A pass as it was measured."""

    kind: str
    """The curve of `Costs` that it belongs to."""
    rows: int
    requests: int
    context: float
    """Tokens that a request has before the pass, the mean of all."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds per token of context, each 0 or more."""

    per_request: float = 0.0
    """Of what is read once for all rows of a request, as kernels do that wait for memory."""
    per_row: float = 0.0
    """Of what every row computes with it."""

    def __post_init__(self) -> None:
        if not all(0.0 <= seconds < 1.0 for seconds in (self.per_request, self.per_row)):
            raise ValueError(f"{self} is no time that reading a token takes; calibrate again.")

    def as_dict(self) -> dict[str, float]:
        """Plain values, for a profile file."""
        return {
            "per_request_token": float(f"{self.per_request:.6g}"),
            "per_row_token": float(f"{self.per_row:.6g}"),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Reading:
        """Of plain values, 0 where there are none. Raises TypeError or ValueError if they are no such times."""
        return cls(float(saved.get("per_request_token", 0.0)), float(saved.get("per_row_token", 0.0)))

    @classmethod
    def fit(cls, passes: Iterable[TimedPass]) -> Reading:
        """What explains best how passes of the same rows and requests differ by their context.

        Least squares of the relative differences from the mean of the same rows and requests, of medians over some
        tokens of context. Where every request has one row the two parts cannot be told apart, and all is `per_row`.
        """
        found: dict[tuple[int, int], dict[int, list[TimedPass]]] = defaultdict(lambda: defaultdict(list))
        for each in passes:
            found[each.rows, each.requests][int(each.context) // _BUCKET].append(each)
        aa = ab = bb = ay = by = 0.0
        for (rows, requests), buckets in found.items():
            contexts = [statistics.fmean(each.context for each in bucket) for bucket in buckets.values()]
            seconds = [statistics.median(each.seconds for each in bucket) for bucket in buckets.values()]
            middle, usual = statistics.fmean(contexts), statistics.fmean(seconds)
            for context, second in zip(contexts, seconds, strict=True):
                a, b = requests * (context - middle) / usual, rows * (context - middle) / usual
                y = (second - usual) / usual
                aa, ab, bb, ay, by = aa + a * a, ab + a * b, bb + b * b, ay + a * y, by + b * y
        if not bb:
            return cls()
        apart = aa * bb - ab * ab
        if apart > 1e-6 * aa * bb:
            per_request, per_row = (ay * bb - by * ab) / apart, (by * aa - ay * ab) / apart
            if per_request >= 0.0 and per_row >= 0.0:
                return cls(per_request, per_row)
            if per_row < 0.0:
                return cls(max(ay / aa, 0.0), 0.0)
        return cls(0.0, max(by / bb, 0.0))
