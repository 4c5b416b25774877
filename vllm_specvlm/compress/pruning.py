"""Keeping a few of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.count import kept


class Pruning(Compressor):
    """Kind `prune`: of each of k = ceil(V / ratio) stretches of the sequence, the token least like the picture's mean.

    SpecVLM drops at random and finds that the drafter hardly minds which; random draws would make the answer's speed,
    and shared KV, depend on chance. One token per stretch spreads the kept ones over the picture as random ones
    would be, and distance from the mean finds within a stretch what is not background. No parameters.
    """

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        return Compressed.plain(tokens[distinct(tokens, kept(tokens.shape[0], self.config.ratio))], tokens.shape[0])


def distinct(tokens: Tensor, k: int) -> Tensor:
    """int64 [k], ascending: in each of k stretches of tokens [V, H], the index of the one farthest from the mean."""
    visual = tokens.shape[0]
    # Stretch j is [ceil(j V / k), ceil((j + 1) V / k)): never empty, lengths differing by one at most.
    edges = (torch.arange(k + 1, device=tokens.device) * visual + k - 1) // k
    places = edges[:-1, None] + torch.arange(-(-visual // k), device=tokens.device)
    wide = tokens.detach().float()
    distances = (wide - wide.mean(0)).square().sum(1)
    outside = places >= edges[1:, None]
    ranked = distances[places.clamp(max=visual - 1)].masked_fill(outside, float("-inf"))
    return places.gather(1, ranked.argmax(1, keepdim=True)).squeeze(1)
