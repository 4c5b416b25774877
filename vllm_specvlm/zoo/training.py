"""What every training stage shares: learning-rate schedule, curves, resumable state, and averaging over processes."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn


def rate(step: int, steps: int, warmup: int = 50, decay: float = 0.3) -> float:
    """Factor on the base learning rate: linear warm-up, flat, then linear decay over the last ``decay`` of all steps.

    Flat in the middle so that a resumed run may be given a different number of ``steps`` without a jump.
    """
    up = min(1.0, (step + 1) / warmup)
    down = min(1.0, (steps - step) / max(1.0, decay * steps))
    return up * max(0.02, down)


class Curve:
    """A CSV file with one row per logged step; appended to when training resumes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._started = time.time()

    def row(self, **values: float | str) -> None:
        """Write one row (adding ``seconds`` since this process started) and echo it."""
        full = {**values, "seconds": round(time.time() - self._started, 1)}
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(full))
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in full.items()})
        print(
            self._path.stem,
            " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in full.items()),
            flush=True,
        )


def save_state(path: Path, **state: Any) -> None:
    """Write ``state`` atomically: a run killed while saving leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class RunningMean:
    """Exponential mean of the trained tensors over the last ``window`` steps or so.

    It does much of what letting the learning rate decay does, at any step: training can be stopped when time is up.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], window: int) -> None:
        self.tensors = {name: value.clone() for name, value in tensors.items()}
        self._share = 1.0 / window

    @torch.no_grad()
    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take in the tensors of one more step."""
        for name, value in self.tensors.items():
            value.lerp_(tensors[name], self._share)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all processes; does nothing in a single one."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    torch._foreach_copy_(
        gradients,
        [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)],
    )


def _one(rank: int, ranks: int, port: int, run: Callable[[int, int], None]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
    run(rank, ranks)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launch(run: Callable[[int, int], None], ranks: int) -> None:
    """Call ``run(rank, ranks)`` in ``ranks`` processes of one thread each (in this process when ``ranks`` is 1)."""
    if ranks == 1:
        _one(0, 1, 0, run)
        return
    spawn(_one, args=(ranks, _free_port(), run), nprocs=ranks)
