"""How long draft passes took that nobody waited for."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class PassTimes:
    """Marks between passes, which a GPU notes when it gets there; on the CPU it is there already."""

    def __init__(self, device: torch.device) -> None:
        """The first mark."""
        self._on_cpu = device.type == "cpu"
        self._clock: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        """A pass ends here and the next one begins."""
        if self._on_cpu:
            self._clock.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def seconds(self) -> list[float]:
        """Of each pass; to be asked when the device has been waited for."""
        if self._on_cpu:
            return [after - before for before, after in pairwise(self._clock)]
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
