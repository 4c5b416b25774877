"""K/V of tree nodes, kept outside the paged cache until a node is accepted."""

from __future__ import annotations

import torch


class DenseStore:
    """Per attention layer two tensors [capacity, kv heads, head size], made on first use and grown on demand.

    The contents live for one step: `reserve` may drop them.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, rows: int) -> None:
        """Make room for `rows` nodes; drops what is stored when it has to grow."""
        if rows > self._capacity:
            self._capacity = max(rows, 2 * self._capacity, 64)
            self._layers.clear()

    def layer(self, name: str, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) of layer `name`; `key` [rows, kv heads, head size] tells heads, dtype and device."""
        pair = self._layers.get(name)
        if pair is None:
            shape = (self._capacity, *key.shape[1:])
            pair = (key.new_zeros(shape), key.new_zeros(shape))
            self._layers[name] = pair
        return pair

    def stored(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(keys, values) of layer `name`, or None when it stored nothing yet."""
        return self._layers.get(name)
