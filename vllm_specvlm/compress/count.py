"""How many tokens a compressor leaves of a picture: known without running it."""

from __future__ import annotations

import math

from vllm_specvlm.compress.config import CompressorConfig


def count(config: CompressorConfig, visual_tokens: int) -> int:
    """Tokens left of `visual_tokens` (1 or more): exact for every kind but select, whose greatest branch is counted.

    At most `visual_tokens`, and at least 1 for every kind but text and a select all of whose branches are text.
    """
    match config.kind:
        case "none":
            return visual_tokens
        case "text":
            return 0
        case "prune" | "pool" | "conv" | "weight":
            return kept(visual_tokens, config.ratio)
        case "resampler":
            return min(config.queries, visual_tokens)
        case "global" | "adaptor":
            return min(config.queries - 1, visual_tokens)
        case "concat":
            return min(sum(count(branch, visual_tokens) for branch in config.branches), visual_tokens)
        case "select":
            return max(count(branch, visual_tokens) for branch in config.branches)
        case kind:
            raise AssertionError(kind)


def kept(visual_tokens: int, ratio: float) -> int:
    """ceil(visual_tokens / ratio), so at least 1; the ratio is 1 or more."""
    return min(visual_tokens, math.ceil(visual_tokens / ratio))
