"""What drafting needs to see of vLLM's model runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Seeds(Protocol):
    """Knows the noise of sampled requests."""

    def seed(self, request_id: str) -> int:
        """int64 seed of the noise that draws this request's tokens."""
        ...


class Batch(Protocol):
    """The runner's persistent batch, after a step's tokens were noted in it (vLLM's own names and shapes)."""

    requests: dict[str, Any]
    """`CachedRequestState` by request id."""
    input_batch: Any
    """`InputBatch`: row order, confirmed tokens, block tables."""
    kv_cache_config: Any
    max_model_len: int
    device: torch.device

    def grows_on_device(self, layers: Sequence[str]) -> bool:
        """Whether trees of a draft with these attention layers are to grow with nobody waiting for the device."""
        ...

    @property
    def tree_sampler(self) -> Seeds:
        """Where a drafter asks for the noise that the target's tokens will be drawn with."""
        ...
