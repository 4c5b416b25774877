"""vLLM's forward context for a pass of a drafter's layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import set_forward_context

from vllm_specvlm.engine.tree_step import TreeStep


@dataclass(frozen=True, slots=True)
class DraftAttentionMetadata:
    """What a draft forward pass hands to its attention layers: the tree step and the group's block table."""

    tree_step: TreeStep
    block_table: torch.Tensor


@contextmanager
def draft_pass(
    config: VllmConfig,
    layers: Sequence[str],
    rows: int,
    step: TreeStep | None,
    block_table: torch.Tensor | None,
    slots: torch.Tensor | None,
    descriptor: Any | None = None,
) -> Iterator[None]:
    """While it is entered, the attention layers of these names attend as `step` says, without gradients.

    Args:
        config: of the engine.
        layers: names in its static forward context.
        rows: of the pass.
        step: the attention arguments; None runs without attention (warm-up).
        block_table: int32 [requests, blocks] of the layers' KV cache group; needed with a `step`.
        slots: int64 [rows]; -1 for rows whose K/V stay dense.
        descriptor: vLLM's `BatchDescriptor` of the CUDA graph that the pass runs in; None runs it without.
    """
    metadata = None
    if step is not None:
        assert block_table is not None
        metadata = dict.fromkeys(layers, DraftAttentionMetadata(step, block_table))
    mapping = {} if slots is None else dict.fromkeys(layers, slots)
    mode = CUDAGraphMode.NONE if descriptor is None else CUDAGraphMode.PIECEWISE
    with (
        torch.inference_mode(),
        set_forward_context(
            metadata,
            config,
            num_tokens=rows,
            cudagraph_runtime_mode=mode,
            batch_descriptor=descriptor,
            slot_mapping=mapping,
        ),
    ):
        yield
