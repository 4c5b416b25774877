"""Graphs that are broken at attention: what lies between is replayed, attention is called anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context

from tests.exactness import recorded_graphs
from tests.exactness.recorded_graphs import RecordedGraph
from vllm_specvlm.engine.attention_break import AttentionBreak, broken_at_attention, graphed


class Attention(nn.Module):
    """Depends on what no tensor says, as vLLM's does on its forward context."""

    factor = 1.0

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query + self.factor * (key * value)


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn: nn.Module = Attention()


@pytest.fixture
def config() -> VllmConfig:
    return VllmConfig()


def in_graph(body: Any, config: VllmConfig, values: torch.Tensor) -> torch.Tensor:
    mode = CUDAGraphMode.PIECEWISE
    context = set_forward_context(
        None, config, num_tokens=4, cudagraph_runtime_mode=mode, batch_descriptor=BatchDescriptor(num_tokens=4)
    )
    with torch.inference_mode(), context:
        found: torch.Tensor = body(values)
    return found.clone()


def wanted(values: torch.Tensor, factor: float) -> torch.Tensor:
    doubled = values * 2
    return (doubled + factor * (doubled * values)).tanh()


@pytest.mark.parametrize("broken", [True, False])
def test_replays(broken: bool, config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """New inputs at the old place, and attention as it is now; the control keeps it as it was."""
    recorded_graphs.install(monkeypatch)
    layer = Attention()
    attend = AttentionBreak(layer) if broken else layer

    def layers(values: torch.Tensor) -> torch.Tensor:
        doubled = values * 2
        return attend(doubled, doubled, values).tanh()

    body = graphed(layers, config)
    values = torch.rand(4, 3)
    torch.testing.assert_close(in_graph(body, config, values), wanted(values, 1.0))
    before = RecordedGraph.replays
    values.copy_(torch.rand(4, 3))
    layer.factor = 3.0
    found = in_graph(body, config, values)
    torch.testing.assert_close(found, wanted(values, 3.0 if broken else 1.0))
    assert RecordedGraph.replays == before + (2 if broken else 1)
    # Elsewhere the graph's memory is read, not the argument's.
    other = torch.rand(4, 3)
    torch.testing.assert_close(in_graph(body, config, other), found)


def test_without_graphs_nothing_changes(config: VllmConfig) -> None:
    """On a platform that has none, and in a pass that names none."""
    attention = AttentionBreak(Attention())
    values = torch.rand(4, 3)
    assert graphed(attention, config) is attention
    torch.testing.assert_close(attention(values, values, values), values + values * values)


def test_layers_come_back() -> None:
    owners = [Owner(), Owner()]
    stock = [owner.attn for owner in owners]
    with pytest.raises(MemoryError), broken_at_attention(owners):
        assert all(isinstance(owner.attn, AttentionBreak) for owner in owners)
        raise MemoryError
    assert [owner.attn for owner in owners] == stock
