"""How spread out each layer's attention is, and the features of the layer where it is least (DREAM, arXiv 2505.19201).

DREAM guides a head's intermediate state by an intermediate feature of the target, token by token that of the layer
whose attention, averaged over heads, has the least entropy: there the target has settled what this token is about.
That is a matter of training alone: which layer it was decides no input of the head, and serving knows nothing of it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

_NAME = "specvlm_entropy"
SHARE = 0.4
"""Of the target's layers, the first: what the later ones say is close to the last one's, which is learned anyway."""


def layers_of(count: int) -> range:
    """The layers of a target of so many that are compared: from the second to those at `SHARE` of all."""
    return range(1, int(SHARE * count))


def entropy(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """float32 [B, T], in nats: of each row's attention, the mean over heads.

    Args:
        query: [B, heads, T, D].
        key: [B, key-value heads, S, D].
        mask: bool [B, 1, T, S], what is seen; or numbers that are added; None: the last T rows of S, each up to itself.
        scale: of scores.
    """
    rows, seen = query.shape[2], key.shape[2]
    grouped = query.unflatten(1, (key.shape[1], -1))
    if mask is None:
        mask = torch.ones(1, 1, rows, seen, dtype=torch.bool, device=query.device).tril(seen - rows)
    mask = mask[..., :seen].expand(len(query), -1, -1, -1)
    # One text at a time, but for single rows: all scores of all texts would be the largest thing in memory by far.
    size = len(query) if rows == 1 else 1
    found = []
    for first in range(0, len(query), size):
        part = slice(first, first + size)
        scores = (grouped[part] @ key[part, :, None].transpose(-1, -2)).float() * scale
        shown = mask[part, :, None]
        scores = scores.masked_fill(~shown, -torch.inf) if mask.dtype == torch.bool else scores + shown
        log = scores.log_softmax(-1)
        found.append(-(log.exp() * log.clamp(min=-1e4)).sum(-1).mean((1, 2)))
    return torch.cat(found)


class SettledLayer:
    """While it is entered, forward passes of a decoder leave in `features` what enters each token's settled layer."""

    def __init__(self, decoder: nn.Module, layers: range) -> None:
        """`layers`: those that are compared."""
        self._decoder: Any = decoder
        self._layers = layers
        self._hooks: list[Any] = []
        self._entering: dict[int, Tensor] = {}
        self._least: Tensor | None = None
        self.features: list[Tensor] = []
        """[B, T, H] of each pass."""

    def __enter__(self) -> Self:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        self._before = self._decoder.config._attn_implementation
        self._decoder.config._attn_implementation = _NAME
        for layer in self._layers:

            def enter(module: nn.Module, args: Any, kwargs: Any, layer: int = layer) -> None:
                self._entering[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

            self._hooks.append(self._decoder.layers[layer].register_forward_pre_hook(enter, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        self._decoder.config._attn_implementation = self._before
        AttentionInterface.register(_NAME, sdpa_attention_forward)  # that registry would keep this, and its features
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        """transformers' attention as it is, with an eye on the layers that are compared."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        if module.layer_idx in self._entering:
            scale = more.get("scaling") or query.shape[-1] ** -0.5
            self._compare(module.layer_idx, entropy(query, key, attention_mask, scale))
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found

    def _compare(self, layer: int, found: Tensor) -> None:
        entering = self._entering.pop(layer)
        if layer == self._layers[0] or self._least is None:
            self._least = found
            self.features.append(entering)
            return
        less = found < self._least
        self._least = torch.where(less, found, self._least)
        self.features[-1] = torch.where(less[..., None], entering, self.features[-1])
