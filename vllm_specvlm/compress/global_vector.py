"""The picture as one token and one vector."""

from __future__ import annotations

from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.learned_queries import LearnedQueries


class GlobalVector(Compressor):
    """Kind `global`: ViSpec's image adaptor. The last query's answer is the global vector, the others are tokens.

    How it joins the text is the drafter's: ViSpec multiplies [hidden; vector] by a matrix that starts as [I, 0].
    """

    def __init__(self, config: CompressorConfig, hidden: int) -> None:
        super().__init__(config)
        self.attention = LearnedQueries(config.queries, hidden)

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        answers = self.attention(tokens)
        return Compressed.plain(answers[:-1][: tokens.shape[0]], tokens.shape[0], global_vector=answers[-1])
