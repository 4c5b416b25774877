"""A layer that attends in a way the tree op does not is refused when the model is loaded, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from vllm_specvlm.engine.attention_cpu import TreeCPUAttentionImpl, adopt

PLAIN: dict[str, Any] = {
    "attn_type": AttentionType.DECODER,
    "sliding_window": -1,
    "logits_soft_cap": 0,
    "alibi_slopes": None,
    "sinks": None,
    "is_fp8_kv_cache": False,
    "kv_cache_dtype": "auto",
    "kv_sharing_target_layer_name": None,
}


def layer(**changes: Any) -> Attention:
    """A layer that was not built: the refusal looks at the attributes only."""
    made = Attention.__new__(Attention)
    torch.nn.Module.__init__(made)
    made.impl = CPUAttentionBackendImpl.__new__(CPUAttentionBackendImpl)
    for name, value in {**PLAIN, **changes}.items():
        setattr(made.impl, name, value)
    return made


def test_a_plain_layer_is_adopted() -> None:
    made = layer()
    assert adopt([("a", made)]) == ["a"]
    assert type(made.impl) is TreeCPUAttentionImpl


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_type": AttentionType.ENCODER_ONLY}, "not as a decoder"),
        ({"sliding_window": 512}, "has a sliding window of 512 tokens"),
        ({"logits_soft_cap": 30.0}, "soft-caps its logits at 30.0"),
        ({"alibi_slopes": torch.ones(4)}, "uses ALiBi"),
        ({"sinks": torch.ones(4)}, "uses attention sinks"),
        ({"is_fp8_kv_cache": True, "kv_cache_dtype": "fp8"}, "keeps its KV cache as fp8"),
        ({"kv_sharing_target_layer_name": "b"}, "shares the KV cache of layer 'b'"),
    ],
)
def test_others_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="cannot verify trees in layer 'a'") as caught:
        adopt([("a", layer(**change))])
    assert says in str(caught.value)


def test_a_subclass_is_refused() -> None:
    class OtherImpl(CPUAttentionBackendImpl):
        pass

    made = layer()
    made.impl.__class__ = OtherImpl
    with pytest.raises(ValueError, match="not vLLM's plain CPU attention"):
        adopt([("a", made)])
