"""Where a drafter's layers lie in vLLM's KV cache, and how far what is there can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.draft_blocks import DraftBlocks

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class BlockTables:
    """Block tables of the one KV cache group that holds some layers."""

    def __init__(self, runner: Batch, layers: Sequence[str]) -> None:
        """The cache has just been allocated.

        Raises:
            ValueError: vLLM spread the `layers` over several groups.
        """
        groups = runner.kv_cache_config.kv_cache_groups
        homes = [i for i, group in enumerate(groups) if set(group.layer_names) & set(layers)]
        if len(homes) != 1:
            raise ValueError(f"The drafter's layers lie in KV cache groups {homes}; they must keep to one.")
        self._runner = runner
        self._group = homes[0]

    def table(self, row: int) -> np.ndarray:
        """int32: the block table of the request in this row of vLLM's input batch."""
        table: np.ndarray = self._runner.input_batch.block_table[self._group].get_numpy_array()[row]
        return table

    def device_table(self) -> torch.Tensor:
        """int32 [requests, blocks] on the device."""
        batch = self._runner.input_batch
        table: torch.Tensor = batch.block_table[self._group].get_device_tensor(batch.num_reqs)
        return table


class DraftCache(BlockTables):
    """The same with validity marks: for layers of the draft's own, which vLLM does not fill."""

    def __init__(self, runner: Batch, layers: Sequence[str]) -> None:
        """As `BlockTables`."""
        super().__init__(runner, layers)
        size = runner.input_batch.block_table[self._group].block_size
        self.blocks = DraftBlocks(runner.kv_cache_config.num_blocks, size)

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Before a step: clear the marks of blocks handed out afresh."""
        size = self.blocks.block_size
        for new in scheduled.scheduled_new_reqs:
            self.blocks.clear(new.block_ids[self._group][new.num_computed_tokens // size :])
        cached = scheduled.scheduled_cached_reqs
        for request_id, blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if blocks is not None:
                resumed = request_id in cached.resumed_req_ids
                self.blocks.clear(blocks[self._group][computed // size if resumed else 0 :])
