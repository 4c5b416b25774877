"""Several compressors, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig


class Concatenation(Compressor):
    """Kind `concat`: the tokens of all branches; of a picture so small that they would be no fewer, its own tokens."""

    def __init__(self, config: CompressorConfig, branches: Sequence[Compressor]) -> None:
        super().__init__(config)
        self.branches = nn.ModuleList(branches)

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        visual = tokens.shape[0]
        together = torch.cat([branch(tokens, before).tokens for branch in self.branches])
        return Compressed.plain(together if together.shape[0] < visual else tokens, visual)
