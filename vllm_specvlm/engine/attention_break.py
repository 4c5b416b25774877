"""Passes of a drafter's own layers as CUDA graphs, which are broken where attention is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphCapture, BreakableCUDAGraphWrapper
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import weak_ref_tensors


class AttentionBreak(nn.Module):
    """Stands before an attention layer that a graph must not hold, since it goes by the lengths of the moment.

    While a pass is captured, the graph ends here and another one begins behind; in every replay the layer is called
    anew between the two. Otherwise it is the layer.
    """

    def __init__(self, attention: nn.Module) -> None:
        """`attention` gives what has the queries' shape, as vLLM's layers do."""
        super().__init__()
        self.attention = attention

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[rows, heads * head size]; arguments as of the layer."""
        capture = BreakableCUDAGraphCapture.current()
        if capture is None:
            mixed: torch.Tensor = self.attention(query, key, value)
            return mixed
        mixed = query.new_empty(query.shape)
        # Held by the graphs' pool, where later graphs may use the same memory; they never run at the same time.
        read, written = weak_ref_tensors((query, key, value)), weak_ref_tensors(mixed)
        capture.add_eager(lambda: written.copy_(self.attention(*read)))
        return mixed


@contextmanager
def broken_at_attention(owners: Sequence[Any]) -> Iterator[None]:
    """Inside, the layers `attn` of these modules have an `AttentionBreak` before them."""
    layers = [owner.attn for owner in owners]
    try:
        for owner, layer in zip(owners, layers, strict=True):
            owner.attn = AttentionBreak(layer)
        yield
    finally:
        for owner, layer in zip(owners, layers, strict=True):
            owner.attn = layer


def graphed(body: Callable[..., torch.Tensor], config: VllmConfig) -> Callable[..., torch.Tensor]:
    """`body` as vLLM's graphs in a `draft_pass` that names one, captured by the first such call; else `body` itself.

    Its arguments are tensors that lie where they lay when the graph was captured (`DraftGraphs.place`), its attention
    is behind an `AttentionBreak`.
    """
    if not current_platform.support_static_graph_mode():
        return body
    return BreakableCUDAGraphWrapper(body, config, CUDAGraphMode.PIECEWISE)
