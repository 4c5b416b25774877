"""Questions put to every picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_HEAD_CHANNELS = 64


class LearnedQueries(nn.Module):
    """One cross-attention from learned queries to a picture's tokens, without residual (a Q-Former of one layer).

    Keys see normalised tokens, values the tokens themselves, and both projections of the values start as the identity:
    at first every answer is a weighted mean of tokens, in the scale and the space that the drafter knows. Heads have 64
    channels, or as many as 64 and H are both multiples of. 3 H * H weights.

    Queries are few and tokens many, so the projections are applied to the queries and to the answers: q (K x) is
    (q K) x, and the mean of V x is V of the mean. That is 2 * queries * H / 64 products of length H per token, not 2 H.
    """

    def __init__(self, queries: int, hidden: int) -> None:
        super().__init__()
        self.heads = hidden // math.gcd(hidden, _HEAD_CHANNELS)
        # Variance 1 for queries and keys gives scores of variance 1: the queries look at different tokens from the
        # start, and none so hard that it cannot learn.
        self.queries = nn.Parameter(torch.randn(queries, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.key.weight)
        nn.init.eye_(self.value.weight)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[queries, H] from tokens [V, H], of the same dtype."""
        by_head = (self.heads, -1, tokens.shape[1])  # a head's rows of a projection: [heads, channels, H]
        asked = torch.einsum("qhc,hcx->hqx", self.queries.unflatten(1, by_head[:2]), self.key.weight.view(by_head))
        scale = math.sqrt(self.heads / tokens.shape[1])
        attention = (asked * scale @ self.norm(tokens).T).softmax(-1)
        seen = torch.einsum("hqx,hcx->qhc", attention @ tokens, self.value.weight.view(by_head))
        return self.out(seen.flatten(1))
