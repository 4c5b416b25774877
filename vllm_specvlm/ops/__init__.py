"""The native operators, their torch references and the layouts of the cache it reads."""

from __future__ import annotations

from vllm_specvlm.ops.acceptance import Walks, race, walk_trees
from vllm_specvlm.ops.cache_layout import KeyValueOffsets, gather, offsets, scatter
from vllm_specvlm.ops.commit_rows import commit_rows
from vllm_specvlm.ops.growth import GrowingTrees
from vllm_specvlm.ops.library import CpuFeatures, LibraryNotFoundError, cpu_features, has_cuda_kernels, load
from vllm_specvlm.ops.reference import commit_rows_reference, tree_attention_reference
from vllm_specvlm.ops.tree_attention import tree_attention
from vllm_specvlm.ops.wrappers import Wrapped, try_wrappers, wrappers_reference

__all__ = [
    "CpuFeatures",
    "GrowingTrees",
    "KeyValueOffsets",
    "LibraryNotFoundError",
    "Walks",
    "Wrapped",
    "commit_rows",
    "commit_rows_reference",
    "cpu_features",
    "gather",
    "has_cuda_kernels",
    "load",
    "offsets",
    "race",
    "scatter",
    "tree_attention",
    "tree_attention_reference",
    "try_wrappers",
    "walk_trees",
    "wrappers_reference",
]
