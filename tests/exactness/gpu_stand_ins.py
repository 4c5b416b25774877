"""What a GPU would do, done by the CPU: vLLM's FlashAttention in plain torch, and our operators over a GPU's caches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention import selector
from vllm.v1.attention.backends import flash_attn

from vllm_specvlm import ops
from vllm_specvlm.engine import attention_choice


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    max_seqlen_q: int,
    cu_seqlens_q: Tensor,
    max_seqlen_k: int,
    *,
    seqused_k: Tensor,
    softmax_scale: float,
    causal: bool,
    block_table: Tensor,
    out: Tensor | None = None,
    return_softmax_lse: bool = False,
    **others: Any,
) -> Any:
    """Paged attention of sequences, as FlashAttention documents it: float32 sums, an empty row's weight is infinite."""
    starts = cu_seqlens_q.tolist()
    assert max_seqlen_q >= max(b - a for a, b in pairwise(starts))
    assert max_seqlen_k >= int(seqused_k.max())
    out = torch.empty_like(q) if out is None else out
    weights = q.new_zeros((q.shape[1], len(q)), dtype=torch.float32)
    group = q.shape[1] // k.shape[2]
    for i, (start, stop) in enumerate(pairwise(starts)):
        used = int(seqused_k[i])
        keys, values = (
            cache[block_table[i].long()].flatten(0, 1)[:used].float().repeat_interleave(group, 1) for cache in (k, v)
        )
        logits = torch.einsum("qhd,khd->hqk", q[start:stop].float(), keys) * softmax_scale
        if causal:
            last = torch.arange(used - (stop - start), used)
            logits = logits.masked_fill(torch.arange(used)[None, :] > last[:, None], -torch.inf)
        out[start:stop] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values).to(out.dtype)
        weight = logits.logsumexp(-1)
        weights[:, start:stop] = torch.where(weight == -torch.inf, torch.inf, weight)
    return (out, weights) if return_softmax_lse else out


def reshape_and_cache_flash(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, *others: Any
) -> None:
    """Rows go to their slots, -1 is left out; there may be more rows than slots."""
    kept = (slot_mapping >= 0).nonzero().flatten()
    slots, page = slot_mapping[kept], key_cache.shape[1]
    key_cache[slots // page, slots % page] = key[kept].to(key_cache.dtype)
    value_cache[slots // page, slots % page] = value[kept].to(value_cache.dtype)


@contextmanager
def flash_attention(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM's own FlashAttention backend on the CPU device, over the functions above."""
    backend = "vllm.v1.attention.backends.flash_attn.FlashAttentionBackend"
    with patch.context() as here:
        here.setattr(CpuPlatform, "get_attn_backend_cls", classmethod(lambda *args, **kwargs: backend))
        for function in (flash_attn_varlen_func, reshape_and_cache_flash):
            here.setattr(flash_attn, function.__name__, function, raising=False)
        here.setattr(flash_attn, "get_flash_attn_version", lambda *args, **kwargs: 2)
        selector._cached_get_attn_backend.cache_clear()
        yield
    selector._cached_get_attn_backend.cache_clear()


class Kernels:
    """Our operators, over a GPU's caches and on the CPU: those of a namespace, or their references."""

    def __init__(self, namespace: Any = None) -> None:
        """`namespace` of `torch.ops`; None: the references."""
        self._namespace = namespace
        self.attended = self.committed = 0
        self.decided: Counter[str] = Counter()

    def tree_attention(self, *arguments: Any) -> None:
        """As `ops.tree_attention`, on layout "rows"."""
        self.attended += 1
        assert arguments[14] == "rows"
        if self._namespace is None:
            # The reference wants a cache that is contiguous; a GPU's kernels read any strides.
            ops.tree_attention_reference(*arguments[:4], arguments[4].contiguous(), *arguments[5:])
        else:
            self._namespace.tree_attention(*arguments)

    def commit_rows(self, caches: Any, keys: Any, values: Any, slots: Tensor) -> None:
        """As `ops.commit_rows`."""
        self.committed += 1
        if self._namespace is None:
            ops.commit_rows_reference(caches, keys, values, slots)
        else:
            self._namespace.commit_rows(list(caches), list(keys), list(values), slots)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of the package's own, on a device that says it can run them."""
        patch.setattr(attention_choice, "kernel_trouble", lambda kind, device: None)
        patch.setattr(ops, "tree_attention", self.tree_attention)
        patch.setattr(ops, "commit_rows", self.commit_rows)
        if self._namespace is not None:  # the CPU has its own
            ops.load()
            for name in ("walk_trees", "race", "grow_level"):
                patch.setattr(torch.ops.vllm_specvlm, name, self._deciding(getattr(self._namespace, name), name))

    def _deciding(self, operator: Any, name: str) -> Callable[..., Any]:
        """Counted."""

        def counted(*arguments: Any) -> Any:
            self.decided[name] += 1
            return operator(*arguments)

        return counted
