"""Attention of tree rows with vLLM's FlashAttention for the paged prefix, torch for the nodes, and a merge of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.gathered_attention import GatheredAttention, node_bits, store_rows
from vllm_specvlm.engine.transfer import upload, upload_all
from vllm_specvlm.engine.tree_step import TreeStep

_CHUNK_ELEMENTS = 1 << 26
"""Of gathered keys at a time."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The rows' paged part: every row of a request sees the same tokens, the first so many.

    Attributes:
        rows: int64 [n], the listed rows in the batch.
        query_start: int32 [requests + 1].
        lengths: int32 [requests], how many paged tokens a request's rows see.
        tables: int64 [requests], their rows of the block table.
        most_rows, most_length: of one request.
    """

    rows: torch.Tensor
    query_start: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
    most_rows: int
    most_length: int


Flash = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Prefix, float], tuple[torch.Tensor, torch.Tensor]]
"""Query [n, heads, size], cache, block table [requests, blocks], prefix and scale give the output [n, heads, size] and
the logarithms of the sums of its weights, float32 [heads, n]."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all layers of a step share; `nodes` int64 [n, longest path], where `has_node` (bool) is true."""

    prefix: Prefix
    nodes: torch.Tensor
    has_node: torch.Tensor


class PrefixAttention:
    """Option A of the design: three launches and more instead of two, but no kernel of our own.

    Only for rows whose visible pages are a request's first so many, as in verification; drafts with holes in their
    context, and chunks of prompts, go through `GatheredAttention`.
    """

    name = "FlashAttention for the prefix, merged with the nodes"

    def __init__(self, flash: Flash) -> None:
        """`flash` attends the prefix."""
        self._flash = flash
        self._otherwise = GatheredAttention()
        self._step: TreeStep | None = None
        self._plan: _Plan | None = None

    def attend(self, call: AttentionCall) -> None:
        """See `TreeAttention`."""
        query, out = call.query, call.out
        if self._step is not call.step:
            self._step, self._plan = call.step, _plan(call.step, query.device)
        plan = self._plan
        if plan is None:
            self._otherwise.attend(call)
            return
        store_rows(call)
        picked = query.index_select(0, plan.prefix.rows)
        paged, paged_weight = self._flash(
            picked, call.kv_cache, call.block_table[plan.prefix.tables], plan.prefix, call.scale
        )
        merged = torch.empty_like(picked)
        size = max(1, _CHUNK_ELEMENTS // max(1, plan.nodes.shape[1] * call.dense_key[0].numel()))
        for start in range(0, len(picked), size):
            part = slice(start, start + size)
            nodes, has_node = plan.nodes[part], plan.has_node[part]
            keys, values = call.dense_key[nodes], call.dense_value[nodes]
            own, own_weight = _nodes(picked[part].float(), keys, values, has_node, call.scale)
            merged[part] = _merge(paged[part].float(), paged_weight[:, part].T, own, own_weight).to(out.dtype)
        out.index_copy_(0, plan.prefix.rows, merged)


def _plan(step: TreeStep, device: torch.device) -> _Plan | None:
    """None for rows that see their pages otherwise."""
    lengths = []
    for request in step.rows:
        upto = request.visible_upto
        whole = len(request.spans) == 1 and request.spans[0][0] == 0 and request.spans[0][1] >= upto.max(initial=0)
        if not len(upto) or not whole or (upto != upto[0]).any():
            return None
        lengths.append(int(upto[0]))
    counts = [len(request.dense_at) for request in step.rows]
    bits = np.concatenate([node_bits(request.ancestors) for request in step.rows])
    longest = int(bits.sum(axis=1).max(initial=0))
    order = np.argsort(~bits, axis=1, kind="stable")[:, :longest]  # a row's nodes first, ascending
    starts = np.repeat([request.dense_start for request in step.rows], counts)
    has_node = np.take_along_axis(bits, order, axis=1)
    arrays = [
        np.concatenate([np.arange(r.first_row, r.first_row + n) for r, n in zip(step.rows, counts, strict=True)]),
        np.cumsum([0, *counts]).astype(np.int32),
        np.asarray(lengths, dtype=np.int32),
        np.asarray([request.block_row for request in step.rows], dtype=np.int64),
        np.where(has_node, starts[:, None] + order, 0),
    ]
    rows, query_start, seen, tables, nodes = upload_all(arrays, device)
    prefix = Prefix(rows, query_start, seen, tables, max(counts), max(lengths))
    return _Plan(prefix, nodes, upload(np.ascontiguousarray(has_node), device))


def _nodes(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row over its own few nodes.

    Args:
        query: float32 [n, heads, size].
        keys, values: [n, path, kv heads, size].
        seen: bool [n, path].
        scale: of the logits.

    Returns:
        float32 [n, heads, size], and the logarithm of the sum of the weights, [n, heads]: -inf without nodes.
    """
    count, heads, size = query.shape
    kv_heads = keys.shape[2]
    grouped = query.view(count, kv_heads, heads // kv_heads, size)
    logits = torch.einsum("nhgd,nphd->nhgp", grouped, keys.float()) * scale
    logits = torch.where(seen[:, None, None, :], logits, -torch.inf)
    weight = logits.logsumexp(dim=-1, keepdim=True)
    shares = (logits - torch.where(weight.isfinite(), weight, 0.0)).exp()
    kept = torch.where(seen[:, :, None, None], values.float(), 0.0)
    mixed = torch.einsum("nhgp,nphd->nhgd", shares, kept)
    return mixed.reshape(count, heads, size), weight.reshape(count, heads)


def _merge(
    first: torch.Tensor, first_weight: torch.Tensor, second: torch.Tensor, second_weight: torch.Tensor
) -> torch.Tensor:
    """One softmax of two halves: float32 [n, heads, size] each, with logarithms of weights [n, heads]."""
    # FlashAttention gives an empty half the weight +inf.
    one = torch.where(first_weight.isfinite(), first_weight, -torch.inf)[:, :, None]
    two = second_weight[:, :, None]
    most = torch.maximum(one, two)
    most = torch.where(most.isfinite(), most, 0.0)
    one, two = (one - most).exp(), (two - most).exp()
    total = one + two
    mixed = torch.where(one > 0, first, 0.0) * one + second * two
    return torch.where(total > 0, mixed / total, 0.0)
