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

_ROWS = (1, 16, 64, 128, 4, 32, 256, 8, 2)
"""Those that say most about the curve first."""
_LEAST_SIZES = 3
_SECONDS = 2.0
"""Time after which no further size is tried."""
_REPEATS = 3
_LEAST = 1e-6


def rehearse(run: Callable[[int], object], most: int, peers: Peers, device: torch.device) -> dict[int, float]:
    """Seconds of a pass by its rows, from a few passes each.

    Args:
        run: makes a pass over so many rows; with attention where the device's own dummy pass has any.
        most: rows a batch may have.
        peers: all ranks run the same passes and keep the first one's times.
        device: where the passes run; a GPU is waited for, once a pass.

    Raises:
        PeerFailedError: `run` failed on another rank.
    """
    peers.agree()
    run(1)
    _wait(device)
    began = time.perf_counter()
    found: dict[int, float] = {}
    for rows in (rows for rows in _ROWS if rows <= most):
        seconds = []
        for _ in range(_REPEATS):
            peers.agree()
            started = time.perf_counter()
            run(rows)
            _wait(device)
            seconds.append(time.perf_counter() - started)
        peers.agree()
        found[rows], spent = peers.share([max(min(seconds), _LEAST), time.perf_counter() - began])
        if spent > _SECONDS and len(found) >= _LEAST_SIZES:
            break
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
