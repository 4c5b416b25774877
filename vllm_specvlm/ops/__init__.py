"""The native operator, its torch reference and the layouts of the cache it reads."""

from __future__ import annotations

from vllm_specvlm.ops.cache_layout import KeyValueOffsets, gather, offsets, scatter
from vllm_specvlm.ops.library import CpuFeatures, LibraryNotFoundError, cpu_features, load
from vllm_specvlm.ops.reference import tree_attention_reference
from vllm_specvlm.ops.tree_attention import tree_attention

__all__ = [
    "CpuFeatures",
    "KeyValueOffsets",
    "LibraryNotFoundError",
    "cpu_features",
    "gather",
    "load",
    "offsets",
    "scatter",
    "tree_attention",
    "tree_attention_reference",
]
