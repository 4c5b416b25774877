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
    channels, or as many as 64 and H are both multiples of, unless their number is given. Without `norm`, keys see the
    tokens as they are. 3 H * H weights.

    Queries are few and tokens many, so the projections are applied to the queries and to the answers: q (K x) is
    (q K) x, and the mean of V x is V of the mean. That is 2 * queries * H / 64 products of length H per token, not 2 H.
    """

    def __init__(self, queries: int, hidden: int, *, heads: int = 0, norm: bool = True) -> None:
        super().__init__()
        if heads and hidden % heads:
            raise ValueError(f"{hidden} channels are no {heads} heads; write a number of heads that divides them.")
        self.heads = heads or hidden // math.gcd(hidden, _HEAD_CHANNELS)
        # Variance 1 for queries and keys gives scores of variance 1: the queries look at different tokens from the
        # start, and none so hard that it cannot learn.
        self.queries = nn.Parameter(torch.randn(queries, hidden))
        self.norm = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.key.weight)
        nn.init.eye_(self.value.weight)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[queries, H] from tokens [V, H], of the same dtype."""
        value = self.value.weight.view(self._by_head(tokens))
        seen = torch.einsum("hqx,hcx->qhc", self._attention(tokens) @ tokens, value)
        return self.out(seen.flatten(1))

    def weights(self, tokens: Tensor) -> Tensor:
        """[queries, heads, V], summing to 1 over V: what each query looks at in tokens [V, H]."""
        return self._attention(tokens).transpose(0, 1)

    def _attention(self, tokens: Tensor) -> Tensor:
        """[heads, queries, V]."""
        by_head = self._by_head(tokens)
        asked = torch.einsum("qhc,hcx->hqx", self.queries.unflatten(1, by_head[:2]), self.key.weight.view(by_head))
        scale = math.sqrt(self.heads / tokens.shape[1])
        return (asked * scale @ self.norm(tokens).T).softmax(-1)

    def _by_head(self, tokens: Tensor) -> tuple[int, int, int]:
        """A head's rows of a projection: [heads, channels, H]."""
        return (self.heads, -1, tokens.shape[1])
