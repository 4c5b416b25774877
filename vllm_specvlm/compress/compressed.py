"""What is left of one picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(slots=True)
class Compressed:
    """One compressed picture, and what its compressor chose."""

    tokens: Tensor
    """[k, H], in the order in which the drafter reads them, of the picture's dtype and device; 0 <= k <= V."""
    cost: Tensor
    """float32 scalar: the share of the picture's tokens that is left, k / V; of a gate that selects, the share it is
    expected to leave. Trained with a small weight beside the drafter's loss, it is the reason to choose less."""
    choice: int | None = None
    """Index of the branch that was run, of a gate that selects."""
    probabilities: Tensor | None = None
    """float32 [branches]: the gate's softmax, without noise; differentiable, but where it explores."""
    global_vector: Tensor | None = None
    """[H]: the picture in one vector, for the drafter to add to the text positions after it: to the embeddings (kind
    `global`), or to what enters its layer (kind `adaptor`)."""

    @classmethod
    def plain(cls, tokens: Tensor, visual_tokens: int, global_vector: Tensor | None = None) -> Compressed:
        """Of a compressor without a gate: these are left of so many."""
        share = tokens.shape[0] / visual_tokens
        cost = torch.full((), share, dtype=torch.float32, device=tokens.device)
        return cls(tokens=tokens, cost=cost, global_vector=global_vector)

    def to(self, device: torch.device) -> Compressed:
        """The same on another device."""
        probabilities = None if self.probabilities is None else self.probabilities.to(device)
        vector = None if self.global_vector is None else self.global_vector.to(device)
        return replace(
            self,
            tokens=self.tokens.to(device),
            cost=self.cost.to(device),
            probabilities=probabilities,
            global_vector=vector,
        )

    @property
    def log_probability(self) -> Tensor | None:
        """float32 scalar: log of the probability of `choice`, for a score-function gradient; None without a choice."""
        if self.probabilities is None or self.choice is None:
            return None
        return self.probabilities[self.choice].log()
