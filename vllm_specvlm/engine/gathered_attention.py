"""Attention of tree rows in plain torch, on any device: slow, and right wherever torch is."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_step import TreeRows

_BITS = 128


def node_bits(ancestors: np.ndarray) -> np.ndarray:
    """bool [n, 128] of masks uint64 [n, 2]."""
    octets = np.ascontiguousarray(ancestors).view(np.uint8).reshape(len(ancestors), -1)
    return np.unpackbits(octets, axis=1, bitorder="little").astype(bool)


def store_rows(call: AttentionCall) -> None:
    """New keys and values go to the dense store, as `ops.tree_attention` does it first."""
    listed = call.step.rows
    rows = np.concatenate([r.first_row + np.flatnonzero(r.dense_at >= 0) for r in listed])
    at = np.concatenate([r.dense_at[r.dense_at >= 0] for r in listed]).astype(np.int64)
    if len(rows):
        source, target = upload(rows, call.key.device), upload(at, call.key.device)
        for new, dense in ((call.key, call.dense_key), (call.value, call.dense_value)):
            dense.index_copy_(0, target, new.index_select(0, source).to(dense.dtype))


class GatheredAttention:
    """Gathers each request's visible pages and dense rows, and attends under a mask in float32."""

    name = "plain torch"

    def attend(self, call: AttentionCall) -> None:
        """See `TreeAttention`."""
        store_rows(call)
        for request in call.step.rows:
            count = len(request.dense_at)
            if not count:
                continue
            rows = slice(request.first_row, request.first_row + count)
            keys, values, mask = _seen(request, call)
            found = _attend(call.query[rows].float(), keys.float(), values.float(), mask, call.scale)
            call.out[rows] = found.to(call.out.dtype)


def _seen(request: TreeRows, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [n, kv heads, head size] that some row of the request sees, and which does: bool [rows, n]."""
    kv_cache = call.kv_cache
    device, page, size = kv_cache.device, kv_cache.shape[2], call.dense_key.shape[2]
    upto = int(request.visible_upto.max())
    spans = [np.arange(start, min(end, upto), dtype=np.int64) for start, end in request.spans]
    positions = np.concatenate([*spans, np.empty(0, dtype=np.int64)])
    bits = node_bits(request.ancestors)
    nodes = int(np.flatnonzero(bits.any(axis=0)).max(initial=-1)) + 1
    blocks = call.block_table[request.block_row].index_select(0, upload(positions // page, device)).long()
    paged = kv_cache[blocks, :, upload(positions % page, device)]
    dense = slice(request.dense_start, request.dense_start + nodes)
    keys = torch.cat([paged[..., :size], call.dense_key[dense]])
    values = torch.cat([paged[..., size:], call.dense_value[dense]])
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
