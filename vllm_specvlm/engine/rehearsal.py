"""Measuring, before the first request, what passes of target and draft cost by their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs

_ROWS = (1, 16, 64, 4, 8, 32, 2, 128, 256)
"""Those that say most about the curve first."""
_LEAST_SIZES = 3
_SECONDS = 2.0
"""Time after which no further size is tried."""
_REPEATS = 3
_LEAST = 1e-6


def rehearse(target: Callable[[int], object], draft: Callable[[int, int], object], most: int, peers: Peers) -> Costs:
    """Prior cost curves from a few passes each.

    Args:
        target: runs the target's forward pass and logits over so many rows, without attention.
        draft: the drafter's `rehearse`.
        most: rows a batch may have.
        peers: all ranks run the same passes and keep the first one's times.
    """
    step = dict(_timed(target, most, peers))
    level = dict(_timed(lambda rows: draft(rows, rows), most, peers))
    feed = dict(_timed(lambda rows: draft(rows, 1), most, peers))
    return Costs(CostCurve(step), CostCurve(step), CostCurve(level), CostCurve(feed))


def _timed(run: Callable[[int], object], most: int, peers: Peers) -> Iterator[tuple[int, float]]:
    run(1)
    began = time.perf_counter()
    sizes = [rows for rows in _ROWS if rows <= most]
    for measured, rows in enumerate(sizes, 1):
        seconds = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            run(rows)
            seconds.append(time.perf_counter() - started)
        best, spent = peers.share([max(min(seconds), _LEAST), time.perf_counter() - began])
        yield rows, best
        if spent > _SECONDS and measured >= _LEAST_SIZES:
            return
