"""Ways to attend the rows of trees on a GPU: our kernel, and what stands in for it where it cannot run."""

from __future__ import annotations

from typing import Protocol

import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.tree_step import TreeStep


class TreeAttention(Protocol):
    """One way."""

    name: str
    """For people to read."""

    def attend(
        self,
        step: TreeStep,
        out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        dense_key: torch.Tensor,
        dense_value: torch.Tensor,
        scale: float,
    ) -> None:
        """Writes the listed rows of `out`; arguments, shapes and dtypes are those of `ops.tree_attention`."""
        ...


class KernelAttention:
    """Our operator."""

    name = "tree attention kernel"

    def attend(
        self,
        step: TreeStep,
        out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        dense_key: torch.Tensor,
        dense_value: torch.Tensor,
        scale: float,
    ) -> None:
        """As described there."""
        ops.tree_attention(
            out,
            query,
            key,
            value,
            kv_cache,
            block_table,
            dense_key,
            dense_value,
            step.requests,
            step.spans,
            step.visible_upto,
            step.dense_at,
            step.ancestors,
            scale,
            "rows",
            step.fast,
        )
