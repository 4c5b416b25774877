"""How far the draft's KV cache can be trusted, slot by slot."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class DraftBlocks:
    """Validity marks of the draft's K/V in the physical cache blocks it shares with the target.

    vLLM caches and shares blocks by the target's view: a block may hold the target's K/V and none of the draft's, since
    the drafter is not fed in every step. A mark is set when the draft wrote the slot, and cleared when the block is
    handed to a request afresh.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Nothing is valid at first."""
        self.block_size = block_size
        self._valid = np.zeros((num_blocks, block_size), dtype=bool)

    def clear(self, blocks: Iterable[int]) -> None:
        """These blocks were handed out afresh."""
        self._valid[list(blocks)] = False

    def mark(self, table: np.ndarray, positions: np.ndarray) -> None:
        """The draft wrote these positions of a request whose block table row is `table`."""
        self._valid[table[positions // self.block_size], positions % self.block_size] = True

    def written(self, table: np.ndarray, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: whether the draft wrote these positions."""
        if start >= stop:
            return np.empty(0, dtype=bool)
        first, last = start // self.block_size, (stop - 1) // self.block_size
        valid: np.ndarray = self._valid[table[first : last + 1]].reshape(-1)
        offset = first * self.block_size
        return valid[start - offset : stop - offset]

    def missing(self, table: np.ndarray, start: int, stop: int) -> np.ndarray:
        """int64, ascending: positions in [start, stop) the draft has not written."""
        return start + np.flatnonzero(~self.written(table, start, stop))

    def slots(self, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int64: physical slots of these positions."""
        return table[positions // self.block_size].astype(np.int64) * self.block_size + positions % self.block_size
