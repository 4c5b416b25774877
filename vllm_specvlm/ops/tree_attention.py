"""Attention of token trees (and of anything simpler) over vLLM's paged cache: the op of `csrc/`."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_specvlm.ops.library import load


def tree_attention(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    dense_key: Tensor,
    dense_value: Tensor,
    requests: Tensor,
    spans: Tensor,
    visible_upto: Tensor,
    dense_at: Tensor,
    ancestors: Tensor,
    scale: float,
    layout: str,
    fast: bool = False,
    visible_from: Tensor | None = None,
    soft_cap: float = 0.0,
) -> None:
    """Writes the attention of all listed rows to `out`.

    A row attends to the paged tokens its request's spans make visible, below its own `visible_upto`, and to the dense
    rows its ancestor mask names; a row that sees nothing becomes zeros. Rows of `out` that no request lists are left
    alone. First of all, new keys and values go to the dense store where `dense_at` says so.

    Args:
        out: [T, query heads, D], written in place.
        query: [T, query heads, D], float32, bfloat16 or float16; D a multiple of 16 in [32, 256], on a GPU 64, 80, 96,
            128 or 256.
        key: [T, kv heads, D], new keys; only rows with `dense_at >= 0` are read.
        value: [T, kv heads, D], new values.
        kv_cache: [blocks, kv heads, page, 2 * D], laid out as `cache_layout` says. On the CPU contiguous, page a
            multiple of 32; on a GPU with any strides of the first three dimensions, page a multiple of 16.
        block_table: int32 [B, pages of a sequence].
        dense_key: [capacity, kv heads, D], keys of tree nodes.
        dense_value: [capacity, kv heads, D], values of tree nodes.
        requests: int32 [R, 6], each first_row, num_rows, block_table_row, dense_start, first_span, num_spans.
        spans: int32 [S, 2], visible positions [start, end) of a request, ascending and disjoint.
        visible_upto: int32 [N], paged positions from here on are invisible to the i-th listed row.
        dense_at: int32 [N], row of the dense store for this row's own key and value, or -1.
        ancestors: int64 [N, 2], bit j (of 128): dense row dense_start + j is visible.
        scale: factor of the logits.
        layout: "vec", "vec16" or "amx": order inside a page and tile rule, as vLLM's `layer.isa`; on a GPU "rows".
        fast: bfloat16 dot products where the CPU has them; otherwise results equal vLLM's own decoding bit for bit.
            On a GPU it changes nothing.
        visible_from: GPU only; int32 [N], paged positions below are invisible to the i-th listed row (sliding windows).
        soft_cap: GPU only; logits become soft_cap * tanh(logits / soft_cap), 0 for not.

    Every tensor may be strided as long as its last dimension is contiguous, except `kv_cache` and the integer tables.
    On a GPU strides and addresses of what is not an integer table are multiples of 16 bytes, and the entries of the
    tables are trusted: looking at them would make the CPU wait.

    Raises:
        RuntimeError: a tensor or, on the CPU, an index is not as described; nothing has been written then. Or the
            package was built without CUDA kernels.
        LibraryNotFoundError: the native library was not built.
    """
    load()
    torch.ops.vllm_specvlm.tree_attention(
        out,
        query,
        key,
        value,
        kv_cache,
        block_table,
        dense_key,
        dense_value,
        requests,
        spans,
        visible_upto,
        dense_at,
        ancestors,
        scale,
        layout,
        fast,
        visible_from,
        soft_cap,
    )
