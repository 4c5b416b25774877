"""What drafting needs to see of vLLM's model runner."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Batch(Protocol):
    """The runner's persistent batch, after a step's tokens were noted in it (vLLM's own names and shapes)."""

    requests: dict[str, Any]
    """`CachedRequestState` by request id."""
    input_batch: Any
    """`InputBatch`: row order, confirmed tokens, block tables."""
    kv_cache_config: Any
    max_model_len: int
    device: torch.device
