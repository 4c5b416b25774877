"""The target's features of confirmed tokens, kept until a feature head is fed with them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(slots=True)
class _Run:
    """Features of consecutive positions."""

    first: int
    stop: int
    chunks: list[torch.Tensor]


class FeatureStore:
    """Per request the features of one stretch of positions, the latest; within a bound, longest unused dropped first.

    Features exist only in the step that computes them, and the head is not fed in every step. What was dropped, or was
    never computed here since vLLM found it in its prefix cache, stays a hole in the head's context.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """Empty."""
        self._capacity = capacity_bytes
        self._bytes = 0
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def keep(self, request_id: str, first: int, features: torch.Tensor) -> None:
        """Features [n, size] of the positions from `first` on; a stretch they do not continue is forgotten."""
        run = self._runs.get(request_id)
        if run is None or run.stop != first:
            self.forget(request_id)
            run = self._runs[request_id] = _Run(first, first, [])
        run.chunks.append(features)
        run.stop += len(features)
        self._bytes += features.nbytes
        self._runs.move_to_end(request_id)
        while self._bytes > self._capacity:
            self.forget(next(iter(self._runs)))

    def stretch(self, request_id: str) -> tuple[int, int]:
        """First position, and the one behind the last."""
        run = self._runs.get(request_id)
        return (0, 0) if run is None else (run.first, run.stop)

    def read(self, request_id: str, positions: np.ndarray) -> torch.Tensor:
        """[positions, size] of positions (int64) within the stretch."""
        run = self._runs[request_id]
        if len(run.chunks) > 1:
            run.chunks = [torch.cat(run.chunks)]
        return run.chunks[0][torch.from_numpy(positions - run.first).to(run.chunks[0].device)]

    def drop_before(self, request_id: str, position: int) -> None:
        """Positions below this were fed."""
        run = self._runs.get(request_id)
        if run is None or position <= run.first:
            return
        if position >= run.stop:
            self.forget(request_id)
            return
        whole = torch.cat(run.chunks)
        self._bytes -= whole.nbytes
        rest = whole[position - run.first :].clone()  # A slice would keep the whole.
        self._bytes += rest.nbytes
        run.first, run.chunks = position, [rest]

    def forget(self, request_id: str) -> None:
        """The request is over, or is computed anew."""
        run = self._runs.pop(request_id, None)
        if run is not None:
            self._bytes -= sum(chunk.nbytes for chunk in run.chunks)
