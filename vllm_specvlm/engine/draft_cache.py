"""The draft's part of vLLM's KV cache: where its layers lie, and how far what is there can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.draft_blocks import DraftBlocks

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class DraftCache:
    """Block tables and validity marks of the one KV cache group that holds the draft's layers."""

    def __init__(self, runner: Batch, layers: Sequence[str]) -> None:
        """The cache has just been allocated.

        Raises:
            ValueError: vLLM spread the draft's `layers` over several groups.
        """
        config = runner.kv_cache_config
        homes = [i for i, group in enumerate(config.kv_cache_groups) if set(group.layer_names) & set(layers)]
        if len(homes) != 1:
            raise ValueError(f"The draft's layers lie in KV cache groups {homes}; a draft must keep to one.")
        self._runner = runner
        self._group = homes[0]
        self.blocks = DraftBlocks(config.num_blocks, runner.input_batch.block_table[self._group].block_size)

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

    def table(self, row: int) -> np.ndarray:
        """int32: the block table of the request in this row of vLLM's input batch."""
        table: np.ndarray = self._runner.input_batch.block_table[self._group].get_numpy_array()[row]
        return table

    def device_table(self) -> torch.Tensor:
        """int32 [requests, blocks] on the device."""
        batch = self._runner.input_batch
        table: torch.Tensor = batch.block_table[self._group].get_device_tensor(batch.num_reqs)
        return table
