"""Combining neighbours with learned weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.count import kept


class Convolution(Compressor):
    """Kind `conv`: a strided, depthwise-separable convolution along the sequence; kernel and stride are the ratio.

    A plain convolution, SpecVLM's, has ratio * H * H weights; this one H * (ratio + H). It starts as average pooling.
    The last stretch is filled up with the last token. Rows of a picture are not told apart.
    """

    def __init__(self, config: CompressorConfig, hidden: int) -> None:
        super().__init__(config)
        self.stride = int(config.ratio)
        self.taps = nn.Parameter(torch.full((self.stride, hidden), 1.0 / self.stride))
        self.mix = nn.Linear(hidden, hidden)
        nn.init.eye_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        visual, hidden = tokens.shape
        stretches = kept(visual, self.stride)
        missing = stretches * self.stride - visual
        full = torch.cat([tokens, tokens[-1:].expand(missing, hidden)]).view(stretches, self.stride, hidden)
        return Compressed.plain(self.mix((full * self.taps).sum(1)), visual)
