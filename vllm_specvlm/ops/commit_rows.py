"""Writing the accepted rows of token trees into the paged caches of all layers at once, on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_specvlm.ops.library import load


def commit_rows(
    kv_caches: Sequence[Tensor], dense_keys: Sequence[Tensor], dense_values: Sequence[Tensor], slots: Tensor
) -> None:
    """Writes row i of every layer's dense store to slot `slots[i]` of its cache; one kernel for up to 128 layers.

    All layers of a call have the same shapes, strides and dtype. There is no CPU kernel: vLLM's own cache update does
    this there, since it knows the layout.

    Args:
        kv_caches: per layer [blocks, kv heads, page, 2 * D], last dimension contiguous; written in place.
        dense_keys: per layer [capacity, kv heads, D] of the same dtype.
        dense_values: per layer [capacity, kv heads, D].
        slots: int64 [rows], rows <= capacity, each block * page + slot in the block, or -1: the row is dropped.

    Raises:
        RuntimeError: a tensor is not as described, nothing has been written then; the slots themselves are trusted. Or
            the package was built without CUDA kernels.
        LibraryNotFoundError: the native library was not built.
    """
    load()
    torch.ops.vllm_specvlm.commit_rows(list(kv_caches), list(dense_keys), list(dense_values), slots)
