"""vLLM's CPU attention with trees: stock attention where there is no tree, our op where there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from vllm_specvlm import ops
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.tree_step import TreeStep


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):
    """Attends tree rows through `ops.tree_attention`; everything else is stock."""

    def forward(  # type: ignore[no-untyped-def, override]
        self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None
    ) -> torch.Tensor:
        """As the stock implementation; metadata that carries a `tree_step` has its listed rows computed by our op."""
        step: TreeStep | None = getattr(attn_metadata, "tree_step", None)
        if step is None or not step.covers_batch:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if step is not None:
            dense_key, dense_value = step.store.layer(layer.layer_name, key)
            out = output.view(output.shape[0], -1, self.head_size)
            table = attn_metadata.block_table
            call = AttentionCall(step, out, query, key, value, kv_cache, table, dense_key, dense_value, self.scale)
            call.through(ops.tree_attention, layer.isa)
        return output


def adopt(layers: Iterable[tuple[str, object]]) -> list[str]:
    """Give the loaded attention layers our implementation; returns their names.

    The layers themselves are changed, not vLLM's backend registry: its selector caches one class per process, and
    an engine without us in the same process must keep the stock one.

    Raises:
        ValueError: a layer does something the tree op does not (sliding window, soft cap, other cache types).
    """
    names = []
    for name, layer in layers:
        trouble = _trouble(layer)
        if trouble:
            raise ValueError(
                f"Method 'specvlm' cannot verify trees in layer '{name}': it {trouble}; "
                "serve this model without --speculative-config, or with another method."
            )
        assert isinstance(layer, Attention)
        layer.impl.__class__ = TreeCPUAttentionImpl
        names.append(name)
    return names


def _trouble(layer: object) -> str | None:
    impl: Any = getattr(layer, "impl", None)
    # Subclasses attend in ways of their own (chunked, prefix-bidirectional) that the tree op does not follow.
    if type(layer) is not Attention or type(impl) is not CPUAttentionBackendImpl:
        return f"is a {type(layer).__name__} with {type(impl).__name__}, not vLLM's plain CPU attention"
    if impl.attn_type != AttentionType.DECODER:
        return f"attends as '{impl.attn_type}', not as a decoder"
    if impl.sliding_window != -1:
        return f"has a sliding window of {impl.sliding_window} tokens"
    if impl.logits_soft_cap:
        return f"soft-caps its logits at {impl.logits_soft_cap}"
    if impl.alibi_slopes is not None:
        return "uses ALiBi"
    if impl.sinks is not None:
        return "uses attention sinks"
    if impl.is_fp8_kv_cache:
        return f"keeps its KV cache as {impl.kv_cache_dtype}"
    if impl.kv_sharing_target_layer_name is not None:
        return f"shares the KV cache of layer '{impl.kv_sharing_target_layer_name}'"
    return None
