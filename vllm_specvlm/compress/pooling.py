"""Averaging neighbours."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.count import Grid, kept, pooled_grid


class Pooling(Compressor):
    """Kind `pool`: adaptive average pooling, of the sequence to ceil(V / ratio) stretches, of a grid to rectangles.

    On a grid the cells are as many as fit into ceil(V / ratio) with about the grid's shape, in raster order. No
    parameters.
    """

    def _compress(self, tokens: Tensor, before: Tensor, grid: Grid | None) -> Compressed:
        visual, hidden = tokens.shape
        channels = tokens.transpose(0, 1)
        if grid is None:
            pooled = F.adaptive_avg_pool1d(channels, kept(visual, self.config.ratio))
        else:
            cells = F.adaptive_avg_pool2d(channels.reshape(hidden, *grid), pooled_grid(grid, self.config.ratio))
            pooled = cells.flatten(1)
        return Compressed.plain(pooled.transpose(0, 1), visual)
