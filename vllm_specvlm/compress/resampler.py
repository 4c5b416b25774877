"""The answers to a few learned queries."""

from __future__ import annotations

from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.learned_queries import LearnedQueries


class Resampler(Compressor):
    """Kind `resampler`: one token per learned query (SpecVLM: 2 are best), of a smaller picture the first V."""

    def __init__(self, config: CompressorConfig, hidden: int) -> None:
        super().__init__(config)
        self.attention = LearnedQueries(config.queries, hidden)

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        return Compressed.plain(self.attention(tokens)[: tokens.shape[0]], tokens.shape[0])
