"""What a layout's reader finds in a source, before the target is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.train.convert.layer_config import LayerConfig
from vllm_specvlm.train.convert.target import Target


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said beside the source."""

    target: Target | None = None
    layers: tuple[int, ...] | None = None
    """The hidden states entering these layers of the target are what the head reads, whatever the source says."""
    vocabulary: int | None = None
    """Cut the tokens that the head can draft to so many."""
    ignored: frozenset[str] = frozenset()
    """Keys of `config.json` that do not matter."""
    text_only: bool = False
    """Leave out the parts of a head that read pictures."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A head taken apart."""

    layout: str
    layer: LayerConfig
    network: dict[str, Any]
    """Arguments of `HeadConfig` beside the layer's sizes and the vocabularies."""
    state: dict[str, torch.Tensor]
    """The network's tensors, named as in `FeatureHead`, without embedding and output layer."""
    embedding: torch.Tensor | None
    """[layer.vocabulary, hidden]; None: the target's."""
    output: torch.Tensor | None
    """[n, hidden]: the head's own output layer; None: the target's."""
    tokens: torch.Tensor | None
    """int64 [n]: which token of the target each row of `output` is."""
    compressor: CompressorConfig = CompressorConfig(kind="text")  # noqa: RUF009 - frozen
    """How it reads pictures; not at all, unless the layout says how."""
    target_name: str | None = None
    """As the source names its target."""
    notes: tuple[str, ...] = ()
    """Sentences for the user."""
