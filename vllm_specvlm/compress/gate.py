"""What decides between ways to compress."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """LayerNorms of the picture's mean and of the mean before it -> two layers -> a logit per branch.

    SpecVLM's gate is guided by the target's features of the question and is not described further; the question may
    follow the picture, and this gate may not see it (see `Compressor`).
    """

    def __init__(self, hidden: int, width: int, branches: int) -> None:
        super().__init__()
        self.norm_picture = nn.LayerNorm(hidden)
        self.norm_before = nn.LayerNorm(hidden)
        self.into = nn.Linear(2 * hidden, width)
        self.out = nn.Linear(width, branches)

    def forward(self, tokens: Tensor, before: Tensor) -> Tensor:
        """float32 [branches] of tokens [V, H] and before [H], both of any floating dtype."""
        dtype = self.into.weight.dtype
        picture = self.norm_picture(tokens.mean(0, dtype=torch.float32).to(dtype))
        seen = torch.cat([picture, self.norm_before(before.to(dtype))])
        return self.out(F.silu(self.into(seen))).float()


def straight_through(logits: Tensor, noise: Tensor, tau: float) -> tuple[int, Tensor]:
    """Gumbel softmax (Jang et al. 2017), straight through: the branch to run, and the factor of what it gives.

    With Gumbel noise the branch is drawn from softmax(logits), whatever tau is; without noise it is the argmax. The
    factor is exactly 1, and its gradient is that of the branch's share softmax((logits + noise) / tau)[branch].

    Args:
        logits, noise: float32 [branches].
        tau: above 0; the lower, the nearer the share is to 1, and the rarer and larger are its gradients.
    """
    noisy = logits + noise
    branch = int(noisy.argmax())
    share = F.softmax(noisy / tau, dim=0)[branch]
    return branch, 1.0 + (share - share.detach())
