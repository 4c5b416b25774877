"""A feature head's part of vLLM's KV cache: a slot's K/V depend on the token behind it as well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.draft_cache import DraftCache
from vllm_specvlm.engine.feature_context import FeatureContext

_ANY = -1


class FeatureCache(DraftCache):
    """Notes with which token the last slot of a block was written: that is the first of the next block, by which vLLM
    does not share blocks."""

    def __init__(self, runner: Batch, layers: Sequence[str]) -> None:
        """As `DraftCache`."""
        super().__init__(runner, layers)
        self._next_token = np.full(runner.kv_cache_config.num_blocks, _ANY, dtype=np.int64)

    def trusted(self, row: int, root: int) -> np.ndarray:
        """bool [root]: slots of the request in this row of vLLM's batch that were written, with its own next tokens."""
        table, size = self.table(row), self.blocks.block_size
        written = self.blocks.written(table, 0, root)
        ends = np.arange(size - 1, root, size)
        next_token = self._next_token[table[ends // size]]
        other = (next_token != _ANY) & (next_token != self._runner.input_batch.token_ids_cpu[row, ends + 1])
        written[ends[other]] = False
        return written

    def mark(self, row: int, context: FeatureContext, slots: np.ndarray) -> None:
        """These slots are written in the pass to come.

        Marked beforehand, since requests of the same pass may share them: a layer writes all K/V before it reads any.
        """
        context.visible[slots] = True
        table, size = self.table(row), self.blocks.block_size
        self.blocks.mark(table, slots)
        ends = slots[slots % size == size - 1]
        tokens = self._runner.input_batch.token_ids_cpu[row, ends + 1]
        self._next_token[table[ends // size]] = np.where(context.in_picture(ends), _ANY, tokens)
