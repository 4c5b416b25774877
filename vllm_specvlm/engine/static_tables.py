"""The tables of a step of trees at places on the device that stay, as whoever replays a graph of it needs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_specvlm.engine.transfer import packed, unpacked


class StaticTables:
    """Room for the largest step; every step is written over the one before, in copies that nobody waits for."""

    def __init__(self, largest: Sequence[np.ndarray], device: torch.device) -> None:
        """`largest`: arrays of the shapes and dtypes that the tables have at most; what is in them does not matter."""
        self._rooms = [torch.from_numpy(np.zeros_like(array)).to(device) for array in largest]

    def write(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """The tables on the device: the first lines of the room that each of them has.

        Raises:
            ValueError: one has more lines than there is room for.
        """
        for array, room in zip(arrays, self._rooms, strict=True):
            if len(array) > len(room):
                raise ValueError(f"A table of a step has {len(array)} lines and room for {len(room)}.")
        host = torch.from_numpy(packed(arrays))
        if self._rooms[0].device.type != "cpu":
            host = host.pin_memory()
        tables = [room[: len(array)] for array, room in zip(arrays, self._rooms, strict=True)]
        for table, part in zip(tables, unpacked(host, arrays), strict=True):
            table.copy_(part, non_blocking=True)
        return tables
