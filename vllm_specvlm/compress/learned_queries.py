"""Questions put to every picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HEAD_CHANNELS = 64


class LearnedQueries(nn.Module):
    """One cross-attention from learned queries to a picture's tokens, without residual (a Q-Former of one layer).

    Keys see normalised tokens, values the tokens themselves, and both projections of the values start as the identity:
    at first every answer is a weighted mean of tokens, in the scale and the space that the drafter knows. Heads have 64
    channels, or as many as 64 and H are both multiples of. 3 H * H weights.
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
        query, key, value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for rows in (self.queries, self.key(self.norm(tokens)), self.value(tokens))
        )
        seen = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return self.out(seen.transpose(0, 1).flatten(1))
