"""Measuring, before the first request, what passes of target and draft cost by their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from vllm.config import CompilationConfig, CUDAGraphMode

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs

_ROWS = (1, 16, 64, 256, 128, 4, 32, 8, 2)
"""Those that say most about the curve first."""
_LEAST_SIZES = 3
_SECONDS = 2.0
"""Time for as many sizes as it has room for."""
_ROUNDS = 3
_LEAST = 1e-6


def rehearse(run: Callable[[int], object], most: int, peers: Peers, device: torch.device) -> dict[int, float]:
    """Seconds of a pass by its rows, the least of a few, and no dearer a row than with fewer rows.

    Sizes take turns: a busy moment, which may last as long as all passes of one size would, spoils a round of all.

    Args:
        run: makes a pass over so many rows; with attention where the device's own dummy pass has any.
        most: rows a batch may have.
        peers: all ranks run the same passes and keep the first one's times.
        device: where the passes run; a GPU is waited for, once a pass.

    Raises:
        PeerFailedError: `run` failed on another rank.
    """

    def timed(rows: int) -> float:
        peers.agree()
        started = time.perf_counter()
        run(rows)
        _wait(device)
        return time.perf_counter() - started

    timed(1)
    began = time.perf_counter()
    least: dict[int, float] = {}
    for rows in (rows for rows in _ROWS if rows <= most):
        least[rows] = timed(rows)
        peers.agree()
        (spent,) = peers.share([time.perf_counter() - began])
        if spent > _SECONDS / _ROUNDS and len(least) >= _LEAST_SIZES:
            break
    for rows in [*least] * (_ROUNDS - 1):
        least[rows] = min(least[rows], timed(rows))
    peers.agree()
    shared = dict(zip(least, peers.share([max(seconds, _LEAST) for seconds in least.values()]), strict=True))
    # Two passes are never quicker than one over the rows of both: what looks so met busy moments all the same.
    found: dict[int, float] = {}
    for rows in sorted(shared):
        found[rows] = min([shared[rows], *(seconds * rows / fewer for fewer, seconds in found.items())])
    return found


def rehearsed_costs(
    step: Mapping[int, float],
    drafter: Drafter,
    most: int,
    peers: Peers,
    device: torch.device,
    graphs: Sequence[int] = (),
) -> Costs:
    """Costs of a target whose passes take `step`, and of a draft's levels and first passes, which end in one root.

    `graphs` as `graph_sizes`.
    """
    level = rehearse(lambda rows: drafter.rehearse(rows, rows), most, peers, device)
    feed = rehearse(lambda rows: drafter.rehearse(rows, 1), most, peers, device)
    return Costs(*(CostCurve(prior, graphs) for prior in (step, step, level, feed)))


def graph_sizes(config: CompilationConfig, device: torch.device) -> tuple[int, ...]:
    """Rows of the CUDA graphs that passes of target and draft are padded to; () where there are none."""
    if device.type == "cpu" or config.cudagraph_mode in (None, CUDAGraphMode.NONE):
        return ()
    return tuple(config.cudagraph_capture_sizes or ())


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
