"""One layer's attention of the tree rows of a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_specvlm.engine.tree_step import TreeStep


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The arguments of `ops.tree_attention`, which says their shapes; the listed rows of `out` are written."""

    step: TreeStep
    """What all layers share."""
    out: torch.Tensor
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    kv_cache: torch.Tensor
    block_table: torch.Tensor
    dense_key: torch.Tensor
    dense_value: torch.Tensor
    scale: float

    def through(self, operator: Callable[..., object], layout: str) -> None:
        """Let `ops.tree_attention`, or something with its arguments, do it, over a cache of this layout."""
        step = self.step
        operator(
            self.out,
            self.query,
            self.key,
            self.value,
            self.kv_cache,
            self.block_table,
            self.dense_key,
            self.dense_value,
            step.requests,
            step.spans,
            step.visible_upto,
            step.dense_at,
            step.ancestors,
            self.scale,
            layout,
            step.fast,
        )
