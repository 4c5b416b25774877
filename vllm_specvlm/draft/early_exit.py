"""An early exit: the target's own first layers draft, and a small network guesses what the other layers would make of
their state (FastVLM, arXiv 2510.22641).

The imitation network has no attention: what a token has to know of others it knows from the target's layers. So it
needs no KV cache and nothing to be fed with; a draft token costs a few of the target's layers and this.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vllm_specvlm.draft.exit_config import ExitConfig


class Block(nn.Module):
    """A gated network beside the state that passes through."""

    def __init__(self, config: ExitConfig) -> None:
        """Random weights that change nothing at first."""
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same."""
        normed = self.norm(state)
        found: torch.Tensor = state + self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return found


class EarlyExit(nn.Module):
    """The imitation network and its output layer; parameters are named as in the checkpoint."""

    vocabulary: torch.Tensor

    def __init__(self, config: ExitConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        self.norm_input = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm_output = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary, bias=False)
        self.register_buffer("vocabulary", torch.arange(config.vocabulary))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """The states [..., hidden] between two of the target's layers as what its final norm would give."""
        state = self.norm_input(state)
        for block in self.blocks:
            state = block(state)
        final: torch.Tensor = self.norm_output(state)
        return final

    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """float32 [..., vocabulary] of what `forward` gave; places are those of `vocabulary`."""
        scores: torch.Tensor = self.lm_head(final)
        return scores.float()
