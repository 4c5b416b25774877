"""The way in: a compressor from its configuration."""

from __future__ import annotations

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.concatenation import Concatenation
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.convolution import Convolution
from vllm_specvlm.compress.count import count
from vllm_specvlm.compress.global_vector import GlobalVector
from vllm_specvlm.compress.image_adaptor import ImageAdaptor
from vllm_specvlm.compress.mixture import Mixture
from vllm_specvlm.compress.pooling import Pooling
from vllm_specvlm.compress.pruning import Pruning
from vllm_specvlm.compress.resampler import Resampler
from vllm_specvlm.compress.selection import Selection
from vllm_specvlm.compress.text_only import TextOnly
from vllm_specvlm.compress.untouched import Untouched

__all__ = ["Compressed", "Compressor", "CompressorConfig", "build", "count"]


def build(config: CompressorConfig, hidden: int) -> Compressor:
    """A new compressor of pictures whose tokens have `hidden` channels, float32, in training mode.

    Its state_dict fits any other one built from an equal configuration. Raises ValueError for `hidden` below 1.
    """
    if hidden < 1:
        raise ValueError(f"Visual tokens of {hidden} channels cannot be compressed; pass the target's hidden size.")
    branches = [build(branch, hidden) for branch in config.branches]
    match config.kind:
        case "none":
            return Untouched(config)
        case "text":
            return TextOnly(config)
        case "prune":
            return Pruning(config)
        case "pool":
            return Pooling(config)
        case "conv":
            return Convolution(config, hidden)
        case "resampler":
            return Resampler(config, hidden)
        case "global":
            return GlobalVector(config, hidden)
        case "adaptor":
            return ImageAdaptor(config, hidden)
        case "select":
            return Selection(config, hidden, branches)
        case "weight":
            return Mixture(config, hidden, branches)
        case "concat":
            return Concatenation(config, branches)
        case kind:
            raise AssertionError(kind)
