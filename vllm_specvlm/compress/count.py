"""How many tokens a compressor leaves of a picture: known without running it."""

from __future__ import annotations

import math

from vllm_specvlm.compress.config import CompressorConfig

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens, which lie in raster order."""


def count(config: CompressorConfig, visual_tokens: int, grid: Grid | None = None) -> int:
    """Tokens left of `visual_tokens` (1 or more): exact for every kind but select, whose greatest branch is counted.

    At most `visual_tokens`, and at least 1 for every kind but text and a select all of whose branches are text.
    """
    match config.kind:
        case "none":
            return visual_tokens
        case "text":
            return 0
        case "pool" if grid is not None:
            return math.prod(pooled_grid(grid, config.ratio))
        case "prune" | "pool" | "conv" | "weight":
            return kept(visual_tokens, config.ratio)
        case "resampler":
            return min(config.queries, visual_tokens)
        case "global" | "adaptor":
            return min(config.queries - 1, visual_tokens)
        case "concat":
            return min(sum(count(branch, visual_tokens, grid) for branch in config.branches), visual_tokens)
        case "select":
            return max(count(branch, visual_tokens, grid) for branch in config.branches)
        case kind:
            raise AssertionError(kind)


def kept(visual_tokens: int, ratio: float) -> int:
    """ceil(visual_tokens / ratio), so at least 1; the ratio is 1 or more."""
    return min(visual_tokens, math.ceil(visual_tokens / ratio))


def pooled_grid(grid: Grid, ratio: float) -> Grid:
    """The grid of at most `kept` cells that has about the shape of `grid`."""
    rows, columns = grid
    cells = kept(rows * columns, ratio)
    across = max(1, min(columns, cells, round(math.sqrt(cells * columns / rows))))
    return min(rows, cells // across), across
