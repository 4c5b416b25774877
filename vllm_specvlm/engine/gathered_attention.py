"""Attention of tree rows in plain torch, on any device: slow, and right wherever torch is."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep

_BITS = 128


def node_bits(ancestors: np.ndarray) -> np.ndarray:
    """bool [n, 128] of masks uint64 [n, 2]."""
    octets = np.ascontiguousarray(ancestors).view(np.uint8).reshape(len(ancestors), -1)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(bool)


def store_rows(
    step: TreeStep, key: torch.Tensor, value: torch.Tensor, dense_key: torch.Tensor, dense_value: torch.Tensor
) -> None:
    """New keys and values go to the dense store, as `ops.tree_attention` does it first."""
    rows = np.concatenate([r.first_row + np.flatnonzero(r.dense_at >= 0) for r in step.rows])
    at = np.concatenate([r.dense_at[r.dense_at >= 0] for r in step.rows]).astype(np.int64)
    if len(rows):
        source, target = upload(rows, key.device), upload(at, key.device)
        dense_key.index_copy_(0, target, key.index_select(0, source).to(dense_key.dtype))
        dense_value.index_copy_(0, target, value.index_select(0, source).to(dense_value.dtype))


class GatheredAttention:
    """Gathers each request's visible pages and dense rows, and attends under a mask in float32."""

    name = "plain torch"

    def attend(
        self,
        step: TreeStep,
        out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        dense_key: torch.Tensor,
        dense_value: torch.Tensor,
        scale: float,
    ) -> None:
        """See `TreeAttention`."""
        store_rows(step, key, value, dense_key, dense_value)
        for request in step.rows:
            count = len(request.dense_at)
            if not count:
                continue
            rows = slice(request.first_row, request.first_row + count)
            keys, values, mask = _seen(request, kv_cache, block_table, dense_key, dense_value)
            out[rows] = _attend(query[rows].float(), keys.float(), values.float(), mask, scale).to(out.dtype)


def _seen(
    request: TreeRows,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    dense_key: torch.Tensor,
    dense_value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [n, kv heads, head size] that some row of the request sees, and which does: bool [rows, n]."""
    device, page, size = kv_cache.device, kv_cache.shape[2], dense_key.shape[2]
    upto = int(request.visible_upto.max())
    spans = [np.arange(start, min(end, upto), dtype=np.int64) for start, end in request.spans]
    positions = np.concatenate([*spans, np.empty(0, dtype=np.int64)])
    bits = node_bits(request.ancestors)
    nodes = int(np.flatnonzero(bits.any(axis=0)).max(initial=-1)) + 1
    blocks = block_table[request.block_row].index_select(0, upload(positions // page, device)).long()
    paged = kv_cache[blocks, :, upload(positions % page, device)]
    dense = slice(request.dense_start, request.dense_start + nodes)
    keys = torch.cat([paged[..., :size], dense_key[dense]])
    values = torch.cat([paged[..., size:], dense_value[dense]])
    mask = np.concatenate([positions[None, :] < request.visible_upto[:, None], bits[:, :nodes]], axis=1)
    return keys, values, upload(mask, device)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """float32 [rows, query heads, head size]; a row that sees nothing becomes zeros."""
    rows, heads, size = query.shape
    grouped = query.view(rows, keys.shape[1], heads // keys.shape[1], size)
    logits = torch.einsum("rhgd,nhd->rhgn", grouped, keys) * scale
    seen = mask[:, None, None, :]
    weights = torch.where(seen, logits, -torch.inf).softmax(dim=-1).masked_fill(~seen, 0.0)
    # What a row does not see must not reach it: 0 times infinity would.
    broken = (~values.isfinite()).any(dim=-1).float()
    mixed = torch.einsum("rhgn,nhd->rhgd", weights, values.nan_to_num(0.0, 0.0, 0.0))
    sees_broken = torch.einsum("rn,nh->rh", mask.float(), broken)[:, :, None, None] > 0
    return mixed.masked_fill(sees_broken, torch.nan).view(rows, heads, size)
