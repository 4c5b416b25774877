"""CUDA graphs of a draft's passes, in the sizes that vLLM captures for the target."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import torch


class DraftGraphs:
    """The sizes there are graphs of, and the memory that graphs read their inputs from.

    An eager pass of many layers costs more in launches than in arithmetic. What lies between two calls of attention is
    captured and replayed by vLLM's own wrappers (a draft VLM's compiled pieces; for others see `attention_break`), and
    attention is called as ever; what they need from us is inputs that always lie at the same place, and a number of
    rows that was captured.
    """

    def __init__(self) -> None:
        """None yet."""
        self._descriptors: dict[int, Any] = {}
        self._sizes: list[int] = []
        self._inputs: dict[str, torch.Tensor] = {}

    def add(self, descriptor: Any) -> None:
        """A pass of so many rows is captured under vLLM's `BatchDescriptor`."""
        self._descriptors[descriptor.num_tokens] = descriptor
        self._sizes = sorted(self._descriptors)

    def forget(self) -> None:
        """vLLM has thrown its graphs away: those that it captured to see what they take."""
        self._descriptors.clear()
        self._sizes.clear()

    def fitting(self, rows: int) -> Any | None:
        """The descriptor of the smallest graph for so many rows; None when there is none."""
        at = bisect_left(self._sizes, rows)
        return self._descriptors[self._sizes[at]] if at < len(self._sizes) else None

    def place(
        self, name: str, values: torch.Tensor, rows_at: int, size: int, padding: int | None = None
    ) -> torch.Tensor:
        """`values` at the place that graphs read the input `name` from, padded to `size` rows.

        Args:
            name: of the input.
            values: with its rows in dimension `rows_at`.
            rows_at: that dimension.
            size: rows of the graph.
            padding: what the rows behind `values` become; None leaves them what they were, zeros at first.
        """
        shape, rows = list(values.shape), values.shape[rows_at]
        held = self._inputs.get(name)
        if held is None:
            # Graphs are captured from the largest to the smallest.
            shape[rows_at] = max([size, *self._sizes])
            held = self._inputs[name] = values.new_zeros(math.prod(shape))
        # Contiguous in every size: compiled code takes the strides from the number of rows.
        shape[rows_at] = size
        view = held[: math.prod(shape)].view(shape)
        view.narrow(rows_at, 0, rows).copy_(values)
        if padding is not None:
            view.narrow(rows_at, rows, size - rows).fill_(padding)
        return view
