"""The draft's own eyes: pictures encoded on demand by the draft's vision tower, in a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from vllm.multimodal.cache.base import MultiModalCache
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.multimodal.utils import group_and_batch_mm_kwargs

from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.transfer import upload

logger = logger_for(__name__)

Encoder = Callable[..., Sequence[torch.Tensor]]


class DraftVision:
    """Embeddings of pictures by content hash, least recently used dropped first.

    vLLM hands over a picture's pixels once: a later request whose prompt is cached comes without. As a request may be
    left undrafted, the pixels are kept until the picture is encoded, within a bound of the same size.

    A picture that cannot be encoded (its pixels are gone, or the tower raises) is reported as unseen: the draft goes
    blind for it, no request fails.
    """

    def __init__(
        self, encode: Encoder | None, capacity_bytes: int, device: torch.device, *, may_miss: bool, at_once: int
    ) -> None:
        """`encode` is the draft's `embed_multimodal`; None for a draft that cannot see.

        At most `at_once` visual tokens go through the tower together, or one picture.

        Without `may_miss` a tower that raises is not caught: ranks that see different pictures would part ways.
        """
        self._may_miss = may_miss
        self._at_once = at_once
        self._encode = encode
        self._capacity = capacity_bytes
        self._device = device
        self._pins = device.type != "cpu"
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._pixels: OrderedDict[str, MultiModalFeatureSpec] = OrderedDict()
        self._pixel_bytes = 0

    def keep(self, features: Sequence[MultiModalFeatureSpec]) -> None:
        """Pictures of a new request: keep their pixels until they are encoded."""
        for feature in features:
            known = feature.identifier in self._cache or feature.identifier in self._pixels
            if feature.data is None or known or self._encode is None:
                continue
            self._pixels[feature.identifier] = feature
            self._pixel_bytes += MultiModalCache.get_item_size(feature.data)
            while self._pixel_bytes > self._capacity:
                self._drop_pixels(next(iter(self._pixels)))

    def _drop_pixels(self, identifier: str) -> None:
        dropped = self._pixels.pop(identifier, None)
        if dropped is not None:
            self._pixel_bytes -= MultiModalCache.get_item_size(dropped.data)

    def embeddings(self, features: Sequence[MultiModalFeatureSpec]) -> dict[str, torch.Tensor]:
        """[visual tokens, draft hidden size] by feature identifier; the unseen ones are missing."""
        found: dict[str, torch.Tensor] = {}
        wanted: dict[str, MultiModalFeatureSpec] = {}
        for feature in features:
            cached = self._cache.get(feature.identifier)
            if cached is not None:
                self._cache.move_to_end(feature.identifier)
                found[feature.identifier] = cached
                continue
            kept = self._pixels.get(feature.identifier, feature)
            if self._encode is not None and kept.data is not None:
                wanted[feature.identifier] = kept
        found.update(self._encoded(wanted))
        return found

    def _encoded(self, wanted: dict[str, MultiModalFeatureSpec]) -> dict[str, torch.Tensor]:
        ordered = sorted(wanted.values(), key=lambda feature: feature.modality)
        outputs: list[torch.Tensor] = []
        try:
            for together in self._batches(ordered):
                items: list[tuple[str, Any]] = [(f.modality, f.data) for f in together]
                for _, _, batch in group_and_batch_mm_kwargs(items, device=self._device, pin_memory=self._pins):
                    assert self._encode is not None
                    outputs.extend(self._encode(**batch))
        except Exception:
            if not self._may_miss:
                raise
            logger.exception("The draft's vision tower failed; the draft goes on without these pictures.")
            return {}
        encoded = {feature.identifier: output for feature, output in zip(ordered, outputs, strict=True)}
        for identifier, output in encoded.items():
            self._store(identifier, output)
        return encoded

    def _batches(self, features: Sequence[MultiModalFeatureSpec]) -> list[list[MultiModalFeatureSpec]]:
        """The features in their order, as many together as the tower's memory was measured with."""
        batches: list[list[MultiModalFeatureSpec]] = []
        room = 0
        for feature in features:
            room -= feature.mm_position.length
            if room < 0 or not batches:
                batches.append([])
                room = self._at_once - feature.mm_position.length
            batches[-1].append(feature)
        return batches

    def _store(self, identifier: str, output: torch.Tensor) -> None:
        if output.untyped_storage().nbytes() > output.nbytes:
            output = output.clone()  # A slice would keep its whole batch in memory.
        self._drop_pixels(identifier)
        self._cache[identifier] = output
        self._bytes += output.nbytes
        while self._bytes > self._capacity and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._bytes -= dropped.nbytes


def place(
    feature: MultiModalFeatureSpec, embeddings: torch.Tensor, positions: np.ndarray
) -> tuple[np.ndarray, torch.Tensor]:
    """Where a picture's embeddings stand among the rows being fed.

    Args:
        feature: the picture, with its placeholder range.
        embeddings: [visual tokens, hidden].
        positions: int64, ascending positions of the rows.

    Returns:
        bool mask over the rows, and the embeddings of the rows in it, in order.
    """
    span = feature.mm_position
    inside = (positions >= span.offset) & (positions < span.offset + span.length)
    offsets = positions[inside] - span.offset
    if span.is_embed is not None:
        # Some families mix separators into the range; only marked tokens take an embedding.
        marked = span.is_embed.numpy().astype(bool)
        index_of = np.cumsum(marked) - 1
        inside[np.flatnonzero(inside)[~marked[offsets]]] = False
        offsets = index_of[offsets[marked[offsets]]]
    return inside, embeddings[upload(offsets, embeddings.device)]


def left_out(span: PlaceholderRange, kept: int) -> list[tuple[int, int]]:
    """The places of a picture's embeddings behind the first `kept`: stretches [start, stop) of positions, ascending.

    Separators between them are text, and stay.
    """
    marks = np.ones(span.length, dtype=bool) if span.is_embed is None else span.is_embed.numpy().astype(bool)
    places = span.offset + np.flatnonzero(marks)[kept:]
    if not len(places):
        return []
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]
