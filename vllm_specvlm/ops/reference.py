"""The operators written plainly in torch: the oracle of their tests, and the definition to read first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_specvlm.ops.cache_layout import gather


def tree_attention_reference(
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
    *,
    compute_dtype: torch.dtype = torch.float64,
) -> None:
    """What `tree_attention` computes, in `compute_dtype` and row by row; same arguments, `fast` changes nothing.

    `out` may have `compute_dtype` itself, to keep the result unrounded.
    """
    listed = 0
    stores: list[tuple[int, int]] = []
    for first_row, rows, *_ in requests.tolist():
        stores += zip(range(first_row, first_row + rows), dense_at[listed : listed + rows].tolist(), strict=True)
        listed += rows
    for row, at in stores:
        if at >= 0:
            dense_key[at], dense_value[at] = key[row], value[row]

    listed = 0
    for first_row, rows, table_row, dense_start, first_span, span_count in requests.tolist():
        request_spans = spans[first_span : first_span + span_count].tolist()
        for row in range(first_row, first_row + rows):
            upto = int(visible_upto[listed])
            low = 0 if visible_from is None else int(visible_from[listed])
            positions = torch.tensor(
                [p for start, end in request_spans for p in range(max(start, low), min(end, upto))], dtype=torch.int64
            )
            page = kv_cache.shape[2]
            blocks = block_table[table_row].long()[positions // page] if len(positions) else positions
            paged_key, paged_value = gather(kv_cache, layout, blocks * page + positions % page)
            nodes = dense_start + _bits(ancestors[listed].tolist())
            keys = torch.cat([paged_key, dense_key[nodes]]).to(compute_dtype)
            values = torch.cat([paged_value, dense_value[nodes]]).to(compute_dtype)
            out[row] = _attend(query[row].to(compute_dtype), keys, values, scale, soft_cap).to(out.dtype)
            listed += 1


def _bits(words: list[int]) -> Tensor:
    """Numbers of the set bits of two 64-bit words, ascending."""
    return torch.tensor([64 * w + b for w in range(2) for b in range(64) if words[w] >> b & 1], dtype=torch.int64)


def commit_rows_reference(
    kv_caches: Sequence[Tensor], dense_keys: Sequence[Tensor], dense_values: Sequence[Tensor], slots: Tensor
) -> None:
    """What `commit_rows` does, row by row; same arguments."""
    for kv_cache, key, value in zip(kv_caches, dense_keys, dense_values, strict=True):
        page, head_size = kv_cache.shape[2], key.shape[2]
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                kv_cache[slot // page, :, slot % page, :head_size] = key[row]
                kv_cache[slot // page, :, slot % page, head_size:] = value[row]


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, soft_cap: float) -> Tensor:
    """query [query heads, D] over keys and values [n, kv heads, D]."""
    if keys.shape[0] == 0:
        return torch.zeros_like(query)
    group = query.shape[0] // keys.shape[1]
    grouped = query.view(keys.shape[1], group, -1)
    logits = torch.einsum("hgd,nhd->hgn", grouped, keys) * scale
    if soft_cap:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return torch.einsum("hgn,nhd->hgd", torch.softmax(logits, dim=-1), values).reshape(query.shape)
