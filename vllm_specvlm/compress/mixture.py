"""Several compressors of one ratio, mixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.gate import Gate


class Mixture(Compressor):
    """Kind `weight`: every branch is run; token j is the mean of the branches' j-th, weighted by the gate's softmax.

    Branches see the tokens as a sequence, so that the j-th tokens of all are of the same stretch of the picture.
    """

    def __init__(self, config: CompressorConfig, hidden: int, branches: Sequence[Compressor]) -> None:
        super().__init__(config)
        self.branches = nn.ModuleList(branches)
        self.gate = Gate(hidden, config.gate_hidden, len(branches))

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        weights = self.gate(tokens, before).softmax(0)
        parts = torch.stack([branch(tokens, before).tokens for branch in self.branches])
        mixed = (weights.to(parts.dtype)[:, None, None] * parts).sum(0)
        result = Compressed.plain(mixed, tokens.shape[0])
        result.probabilities = weights
        return result
