"""Linear layers of drafters as vLLM computes them."""

from __future__ import annotations

from torch import nn
from vllm.model_executor.layers.linear import ReplicatedLinear


def served(linear: nn.Linear) -> ReplicatedLinear:
    """The same layer as vLLM computes it: on a CPU several times faster for a few rows, with weights packed once."""
    layer = ReplicatedLinear(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        params_dtype=linear.weight.dtype,
        return_bias=False,
    ).to(linear.weight.device)
    layer.weight.data.copy_(linear.weight)
    if linear.bias is not None:
        layer.bias.data.copy_(linear.bias)
    layer.quant_method.process_weights_after_loading(layer)
    return layer
