"""What compressed tokens are said to be made of is what they are made of."""

from __future__ import annotations

import pytest
import torch

from vllm_specvlm.compress.compressor import Compressor, CompressorConfig, build
from vllm_specvlm.compress.config import KINDS
from vllm_specvlm.compress.origins import origins

HIDDEN = 64
LOCAL = ("none", "prune", "pool", "conv", "weight", "concat")


def made(kind: str, **numbers: int) -> Compressor:
    torch.manual_seed(3)
    compressor = build(CompressorConfig(kind, **numbers), HIDDEN).eval()
    with torch.no_grad():
        for weight in compressor.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return compressor


@pytest.mark.parametrize("visual", [1, 2, 17, 36, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_shares(kind: str, visual: int) -> None:
    compressor = made(kind)
    tokens, before = torch.randn(visual, HIDDEN), torch.randn(HIDDEN)
    with torch.inference_mode():
        found = origins(compressor, tokens, before)
        left = compressor(tokens, before).tokens
    assert found.shape == (len(left), visual)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(len(left)))


def moved(compressor: Compressor, tokens: torch.Tensor, before: torch.Tensor, index: int) -> torch.Tensor:
    """bool [k]: which compressed tokens change with this one."""
    other = tokens.clone()
    other[index] += 1e-2 * torch.randn(HIDDEN)
    return (compressor(other, before).tokens != compressor(tokens, before).tokens).any(1)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_token_without_a_share_changes_nothing(kind: str) -> None:
    compressor = made(kind)
    tokens, before = torch.randn(40, HIDDEN), torch.randn(HIDDEN)
    with torch.inference_mode():
        found = origins(compressor, tokens, before)
        if kind == "weight":  # the gate looks at the whole picture
            compressor = compressor.branches[1]  # type: ignore[assignment,index]
            found = origins(compressor, tokens, before)
        if kind == "concat":  # as the queries of its last branch do
            compressor = compressor.branches[2]  # type: ignore[assignment,index]
            found = origins(compressor, tokens, before)
        changed = torch.stack([moved(compressor, tokens, before, i) for i in range(40)], 1)
        assert (changed == (found > 0)).all()
        # The control: shares one place further are not those.
        assert (changed != (found.roll(1, 1) > 0)).any()


def test_means_are_the_weighted_tokens() -> None:
    """With weights as they begin, every primitive gives the mean of its tokens by their shares."""
    tokens, before = torch.randn(36, HIDDEN), torch.randn(HIDDEN)
    for kind in ("none", "prune", "pool", "conv"):
        compressor = build(CompressorConfig(kind), HIDDEN).eval()
        with torch.inference_mode():
            found = origins(compressor, tokens, before)
            torch.testing.assert_close(found @ tokens, compressor(tokens, before).tokens, rtol=1e-4, atol=1e-5)


def test_what_a_gate_chose() -> None:
    compressor = made("select")
    tokens, before = torch.randn(36, HIDDEN), torch.randn(HIDDEN)
    with torch.inference_mode():
        choice = compressor(tokens, before).choice
        branch = compressor.branches[choice]  # type: ignore[index]
        assert torch.equal(origins(compressor, tokens, before), origins(branch, tokens, before))  # type: ignore[arg-type]
        others = [b for i, b in enumerate(compressor.branches) if i != choice]  # type: ignore[arg-type]
        found = origins(compressor, tokens, before)
        assert not any(torch.equal(origins(other, tokens, before), found) for other in others)  # type: ignore[arg-type]
