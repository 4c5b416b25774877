"""The feature head's network: what training and serving share."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig

CONFIG = HeadConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    target_vocabulary=100,
    vocabulary=20,
    compressor=CompressorConfig(kind="pool"),
)


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (rows.transpose(0, 1)[None] for rows in (q, k, v))
    mixed: torch.Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed[0].transpose(0, 1)


def run(head: FeatureHead, first: int = 0) -> torch.Tensor:
    torch.manual_seed(1)
    state, embeddings = torch.randn(6, 32), torch.randn(6, 32)
    dtype = head.q_proj.weight.dtype
    with torch.inference_mode():
        out: torch.Tensor = head(state.to(dtype), embeddings.to(dtype), torch.arange(first, first + 6), causal)
    return out


def test_rotary_frequencies_stay_float32() -> None:
    """At position 5000 a frequency rounded to bfloat16 would turn heads by radians."""
    torch.manual_seed(0)
    head = FeatureHead(CONFIG)
    frequencies = head.inverse_frequencies.clone()
    head.to(torch.bfloat16)
    assert head.q_proj.weight.dtype == torch.bfloat16
    assert head.inverse_frequencies.dtype == torch.float32
    assert torch.equal(head.inverse_frequencies, frequencies)


def test_positions_are_relative() -> None:
    torch.manual_seed(0)
    head = FeatureHead(CONFIG)
    torch.testing.assert_close(run(head, 0), run(head, 1000), atol=2e-4, rtol=2e-4)


def test_bfloat16_is_near_float32_far_from_the_start() -> None:
    torch.manual_seed(0)
    head = FeatureHead(CONFIG)
    exact = run(head, 5000)
    near = run(head.to(torch.bfloat16), 5000).float()
    assert (near - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("fusion", ["linear", "wide"])
def test_visual_slots_take_visual_tokens(fusion: str) -> None:
    """What stands in a visual slot is the visual token, whatever feature or embedding is passed with it."""
    torch.manual_seed(0)
    head = FeatureHead(replace(CONFIG, fusion=fusion))
    visual, is_visual = torch.randn(2, 32), torch.tensor([False, True, True, False, False, False])
    state, embeddings = torch.randn(6, 32), torch.randn(6, 32).masked_fill(is_visual[:, None], 0.0)
    other = state.clone()
    other[is_visual] = 7.0
    positions = torch.arange(6)
    with torch.inference_mode():
        a = head(state, embeddings, positions, causal, visual, is_visual)
        b = head(other, embeddings, positions, causal, visual, is_visual)
        c = head(state, embeddings, positions, causal, 2 * visual, is_visual)
    torch.testing.assert_close(a, b)
    assert not torch.allclose(a[3:], c[3:]), "later slots do not see the picture"
    torch.testing.assert_close(a[:1], c[:1])
