"""vLLM's FlashAttention with trees: stock attention where there is no tree, our kernel or a fallback where there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends import flash_attn
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl

from vllm_specvlm.engine import attention_choice
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.attention_choice import Verdict
from vllm_specvlm.engine.gathered_attention import GatheredAttention
from vllm_specvlm.engine.prefix_attention import Flash, Prefix, PrefixAttention
from vllm_specvlm.engine.tree_attention import KernelAttention, TreeAttention
from vllm_specvlm.engine.tree_step import TreeStep
from vllm_specvlm.engine.trial import LayerKind

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class TreeFlashAttentionImpl(FlashAttentionImpl):
    """Attends tree rows in its own way; everything else is stock."""

    tree_attention: TreeAttention

    def forward(  # type: ignore[no-untyped-def, override]
        self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None
    ) -> torch.Tensor:
        """As the stock implementation; metadata that carries a `tree_step` has its listed rows computed by us."""
        step: TreeStep | None = getattr(attn_metadata, "tree_step", None)
        if step is None or not step.covers_batch:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if step is not None:
            dense_key, dense_value = step.store.layer(layer.layer_name, key)
            out = output.view(output.shape[0], -1, self.head_size)
            table = attn_metadata.block_table
            self.tree_attention.attend(
                AttentionCall(step, out, query, key, value, kv_cache, table, dense_key, dense_value, self.scale)
            )
        return output


def adopt(layers: Mapping[str, Any], device: torch.device, verdict: Verdict) -> None:
    """Give the loaded attention layers our implementation, and each kind of them the way that passes, on all ranks.

    As on CPUs, the layers themselves are changed and not vLLM's registry of backends.

    Raises:
        ValueError: a layer does something that no way of ours does (sliding window, soft cap, other cache types).
        RuntimeError: nothing passes.
    """
    ways: dict[tuple[LayerKind, int | None], TreeAttention] = {}
    for name, layer in layers.items():
        reason = _trouble(layer)
        if reason:
            raise ValueError(
                f"Method 'specvlm' cannot verify trees in layer '{name}': it {reason}; "
                "serve this model without --speculative-config, or with another method."
            )
        impl: Any = layer.impl
        kind = LayerKind(impl.num_heads, impl.num_kv_heads, impl.head_size, layer.kv_cache_torch_dtype)
        version: int | None = impl.vllm_flash_attn_version
        if (kind, version) not in ways:
            candidates: list[TreeAttention] = [KernelAttention(), PrefixAttention(_flash(version)), GatheredAttention()]
            ways[kind, version] = attention_choice.choose(kind, device, candidates, verdict)
        impl.__class__ = TreeFlashAttentionImpl
        impl.tree_attention = ways[kind, version]


def _flash(version: int | None) -> Flash:
    """FlashAttention over the pages alone, as vLLM's context parallelism calls it."""

    def attend(
        query: torch.Tensor, kv_cache: torch.Tensor, block_table: torch.Tensor, prefix: Prefix, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = kv_cache.transpose(1, 2).split(query.shape[-1], dim=-1)
        out, weight = flash_attn.flash_attn_varlen_func(
            q=query,
            k=flash_attn.canonicalize_singleton_dim_strides(keys),
            v=flash_attn.canonicalize_singleton_dim_strides(values),
            cu_seqlens_q=prefix.query_start,
            max_seqlen_q=prefix.most_rows,
            seqused_k=prefix.lengths,
            max_seqlen_k=prefix.most_length,
            softmax_scale=scale,
            causal=False,
            block_table=block_table,
            return_softmax_lse=True,
            fa_version=version,
        )
        return out, weight

    return attend


def _trouble(layer: Any) -> str | None:
    impl: Any = getattr(layer, "impl", None)
    if type(layer) is not Attention or type(impl) is not FlashAttentionImpl:
        return (
            f"is a {type(layer).__name__} with {type(impl).__name__}, not vLLM's FlashAttention "
            "(--attention-backend FLASH_ATTN)"
        )
    dtype: torch.dtype = layer.kv_cache_torch_dtype
    if impl.attn_type != AttentionType.DECODER:
        return f"attends as '{impl.attn_type}', not as a decoder"
    if impl.sliding_window != (-1, -1):
        return f"has a sliding window of {impl.sliding_window[0] + 1} tokens"
    if impl.logits_soft_cap:
        return f"soft-caps its logits at {impl.logits_soft_cap}"
    if impl.alibi_slopes is not None:
        return "uses ALiBi"
    if impl.sinks is not None:
        return "uses attention sinks"
    if dtype not in _DTYPES:
        return f"keeps its KV cache as {impl.kv_cache_dtype}"
    if impl.kv_sharing_target_layer_name is not None:
        return f"shares the KV cache of layer '{impl.kv_sharing_target_layer_name}'"
    return None
