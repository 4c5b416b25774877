"""The picture as a few tokens and one vector, as ViSpec has it."""

from __future__ import annotations

from torch import Tensor, nn

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.learned_queries import LearnedQueries


class ImageAdaptor(Compressor):
    """Kind `adaptor`: ViSpec's own (arXiv 2509.15235, section 3.2), for converted heads.

    Keys see the tokens as they are, with the head's number of attention heads. The last query's answer becomes, through
    a matrix that starts as zero, the vector that the drafter adds to what enters its layer at text positions.
    """

    def __init__(self, config: CompressorConfig, hidden: int) -> None:
        super().__init__(config)
        self.attention = LearnedQueries(config.queries, hidden, heads=config.heads, norm=False)
        self.vector = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.vector.weight)

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        answers = self.attention(tokens)
        vector: Tensor = self.vector(answers[-1])
        return Compressed.plain(answers[:-1][: tokens.shape[0]], tokens.shape[0], global_vector=vector)
