"""What each token that a compressor leaves is made of: where a drafter looks, for people to see."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.concatenation import Concatenation
from vllm_specvlm.compress.convolution import Convolution
from vllm_specvlm.compress.count import kept
from vllm_specvlm.compress.global_vector import GlobalVector
from vllm_specvlm.compress.image_adaptor import ImageAdaptor
from vllm_specvlm.compress.mixture import Mixture
from vllm_specvlm.compress.pooling import Pooling
from vllm_specvlm.compress.pruning import Pruning, distinct
from vllm_specvlm.compress.resampler import Resampler
from vllm_specvlm.compress.selection import Selection
from vllm_specvlm.compress.text_only import TextOnly
from vllm_specvlm.compress.untouched import Untouched


def origins(compressor: Compressor, tokens: Tensor, before: Tensor) -> Tensor:
    """float32 [k, V], rows summing to 1: the shares of a picture's V tokens in the k that are left.

    Kept and averaged tokens have exact shares. Of a convolution they are the mean sizes of its taps, of learned
    queries the mean over heads of their attention. A global vector, which is no token, is not among them.

    Args:
        compressor: in evaluation mode.
        tokens, before: as in `Compressor.forward`.
    """
    visual = tokens.shape[0]
    each = torch.eye(visual, device=tokens.device)
    match compressor:
        case Untouched():
            return each
        case TextOnly():
            return each[:0]
        case Pruning():
            return each[distinct(tokens, kept(visual, compressor.config.ratio))]
        case Pooling():  # a mean of tokens whatever they are, so also of unit vectors
            return compressor(each, each[0]).tokens
        case Convolution():
            sizes = compressor.taps.float().abs().mean(1)
            missing = -visual % compressor.stride
            full = torch.cat([each, each[-1:].expand(missing, visual)]).view(-1, compressor.stride, visual)
            return (full * (sizes / sizes.sum())[:, None]).sum(1)
        case Resampler() | GlobalVector() | ImageAdaptor():
            tokens_left = compressor(tokens, before).tokens.shape[0]
            return compressor.attention.weights(tokens).float().mean(1)[:tokens_left]
        case Selection():
            return _of_branches(compressor, tokens, before)[int(compressor.gate(tokens, before).argmax())]
        case Mixture():
            weights = compressor.gate(tokens, before).softmax(0)
            parts = torch.stack(_of_branches(compressor, tokens, before))
            return (weights[:, None, None] * parts).sum(0)
        case Concatenation():
            together = torch.cat(_of_branches(compressor, tokens, before))
            return together if together.shape[0] < visual else each
        case _:
            raise AssertionError(type(compressor).__name__)


def _of_branches(compressor: Selection | Mixture | Concatenation, tokens: Tensor, before: Tensor) -> list[Tensor]:
    return [origins(cast(Compressor, branch), tokens, before) for branch in compressor.branches]
