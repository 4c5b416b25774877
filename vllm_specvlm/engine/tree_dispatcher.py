"""Which of vLLM's CUDA graphs a step runs in: steps with trees in PIECEWISE ones, where attention is called anew."""

from __future__ import annotations

from typing import Any

from vllm.config import CUDAGraphMode
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher


class TreeDispatcher(CudagraphDispatcher):
    """vLLM's dispatcher, which never runs a tree in a FULL graph: those were captured with plain attention in them."""

    has_trees = False
    """Whether the step to come has trees; told by the runner."""

    def dispatch(self, num_tokens: int, *args: Any, invalid_modes: Any = None, **kwargs: Any) -> Any:
        """As vLLM's."""
        if self.has_trees:
            invalid_modes = {CUDAGraphMode.FULL, *(invalid_modes or ())}
        return super().dispatch(num_tokens, *args, invalid_modes=invalid_modes, **kwargs)
