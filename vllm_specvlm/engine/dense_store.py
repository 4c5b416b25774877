"""K/V of tree nodes, kept outside the paged cache until a node is accepted."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class DenseStore:
    """Per attention layer two tensors [capacity, kv heads, head size], made on first use and grown on demand.

    The contents live for one step: `reserve` may drop them.
    """

    def __init__(self, limit: int | None = None) -> None:
        """`limit`: rows there may be at most, None for any number."""
        self.limit = limit
        self._capacity = 0
        self._layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def reserve(self, rows: int) -> None:
        """Make room for `rows` nodes; drops what is stored when it has to grow.

        Raises:
            ValueError: there may not be so many.
        """
        if self.limit is not None and rows > self.limit:
            raise ValueError(f"{rows} tree nodes do not fit into the memory for {self.limit}.")
        if rows > self._capacity:
            grown = max(rows, 2 * self._capacity, 64)
            self._capacity = grown if self.limit is None else min(grown, self.limit)
            self._layers.clear()

    def allocate(self, rows: int, shapes: Mapping[str, tuple[int, int]], like: torch.Tensor) -> None:
        """Make the tensors of all layers now, for good.

        Args:
            rows: nodes there will be room for.
            shapes: kv heads and head size by layer.
            like: of the dtype and on the device of keys and values.
        """
        self.limit = self._capacity = rows
        self._layers = {
            name: (like.new_zeros((rows, *shape)), like.new_zeros((rows, *shape))) for name, shape in shapes.items()
        }

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
