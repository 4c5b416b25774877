"""What passes through the target's language model, caught on the way."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from vllm_specvlm.train.attention_entropy import SettledLayer


class Tap:
    """While it is entered, every forward pass of a decoder adds to the lists below.

    Hooks, not `output_hidden_states`: that would keep every layer's states, and transformers' `generate` gives no
    states behind the final norm of a prompt together with its embeddings.
    """

    def __init__(self, decoder: nn.Module, layers: tuple[int, ...], compared: range = range(0)) -> None:
        """`layers`: whose inputs to keep; `compared`: those of which each token's settled one is kept."""
        self._decoder, self._layers = decoder, layers
        self._settled = SettledLayer(decoder, compared) if compared else None
        self._hooks: list[Any] = []
        self.embeddings: list[Tensor] = []
        """[B, T, H] of each pass: what the decoder reads, visual tokens in their places."""
        self.final: list[Tensor] = []
        """[B, T, H] of each pass, behind the final norm."""
        self.entering: list[list[Tensor]] = [[] for _ in layers]
        """For each of `layers`: [B, T, H] of each pass."""

    def __enter__(self) -> Self:
        decoder: Any = self._decoder
        if self._settled is not None:
            self._settled.__enter__()
        self._hooks.append(decoder.register_forward_pre_hook(self._read, with_kwargs=True))
        self._hooks.append(decoder.register_forward_hook(self._wrote))
        for place, layer in enumerate(self._layers):
            kept = self.entering[place]

            def enter(module: nn.Module, args: Any, kwargs: Any, kept: list[Tensor] = kept) -> None:
                kept.append((args[0] if args else kwargs["hidden_states"]).detach())

            self._hooks.append(decoder.layers[layer].register_forward_pre_hook(enter, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settled is not None:
            self._settled.__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _read(self, module: Any, args: Any, kwargs: Any) -> None:
        embeddings = kwargs.get("inputs_embeds")
        self.embeddings.append(
            (module.get_input_embeddings()(kwargs["input_ids"]) if embeddings is None else embeddings).detach()
        )

    def _wrote(self, module: nn.Module, args: Any, output: Any) -> None:
        self.final.append(output[0].detach())

    def clear(self) -> None:
        """Forget all passes."""
        for kept in (self.embeddings, self.final, *self.entering):
            kept.clear()
        if self._settled is not None:
            self._settled.features.clear()

    def features(self, passes: slice = slice(None)) -> Tensor:
        """[B, T, F]: what `FeatureHead.state` takes, of some passes one after the other."""
        if not self._layers:
            return torch.cat(self.final[passes], dim=1)
        return torch.cat([torch.cat(kept[passes], dim=1) for kept in self.entering], dim=-1)

    def settled(self) -> Tensor | None:
        """[B, T, H]: what enters each token's settled layer, of all passes one after the other; None: nobody asked."""
        return None if self._settled is None else torch.cat(self._settled.features, dim=1)
