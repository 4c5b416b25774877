"""Averaging neighbours."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.count import kept


class Pooling(Compressor):
    """Kind `pool`: adaptive average pooling of the sequence to ceil(V / ratio) stretches. No parameters.

    Not of rectangles: V alone does not tell a square picture from a wide one.
    """

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        visual = tokens.shape[0]
        pooled = F.adaptive_avg_pool1d(tokens.transpose(0, 1), kept(visual, self.config.ratio))
        return Compressed.plain(pooled.transpose(0, 1), visual)
