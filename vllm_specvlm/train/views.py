"""How a head sees lessons: pictures compressed, slots laid out, embeddings looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.slots import Slots, lay_out
from vllm_specvlm.train.target import Target


@dataclass(slots=True)
class View:
    """The head's inputs for B lessons, on its device."""

    slots: Slots
    embeddings: Tensor
    """float32 [B, S, H]: see `unroll`."""
    visual: Tensor | None
    """[n, H]: see `unroll`."""
    compressed: list[list[Compressed]]
    """Of each lesson: its pictures."""


def view(head: FeatureHead, target: Target, lessons: Sequence[Lesson]) -> View:
    """See `View`; gradients flow to the compressor."""
    device = target.device
    compressed = [_compressed(head, target, lesson) if head.sees else [] for lesson in lessons]
    pictures = [picture for each in compressed for picture in each]
    kept = [
        [len(picture.tokens) for picture in each] if head.sees else [0] * len(lesson.pictures)
        for lesson, each in zip(lessons, compressed, strict=True)
    ]
    slots = lay_out(lessons, kept).to(device)
    ids = slots.next_ids.clamp(min=0)
    embeddings = head.embed_tokens(ids).float() if head.config.own_embedding else target.embed(ids)
    embeddings = embeddings.masked_fill((slots.next_ids < 0)[..., None], 0.0)
    if any(picture.global_vector is not None for picture in pictures):
        zero = embeddings.new_zeros(embeddings.shape[-1])
        embeddings = embeddings + torch.stack([zero, *_latest_vectors(compressed, zero)])[slots.picture + 1]
    visual = torch.cat([picture.tokens for picture in pictures]) if pictures else None
    return View(slots, embeddings, visual, compressed)


def _latest_vectors(compressed: Sequence[Sequence[Compressed]], zero: Tensor) -> list[Tensor]:
    """For each picture what text behind it gets: its global vector, or that of the latest before it that has one.

    A gate may give one picture a vector and the next one none; the engine does the same (`FeatureContext`).
    """
    found = []
    for each in compressed:
        latest = zero
        for picture in each:
            latest = latest if picture.global_vector is None else picture.global_vector.float()
            found.append(latest)
    return found


def _compressed(head: FeatureHead, target: Target, lesson: Lesson) -> list[Compressed]:
    """Each picture, before it the mean embedding of the text tokens in front of it."""
    found = []
    text = torch.ones(len(lesson.ids), dtype=torch.bool)
    for start, length in lesson.pictures:
        text[start : start + length] = False
    for (start, _), tokens in zip(lesson.pictures, lesson.visual, strict=True):
        front = lesson.ids[:start][text[:start]].to(target.device)
        if not len(front):
            before = torch.zeros(target.hidden_size, device=target.device)
        elif head.config.own_embedding:
            before = head.embed_tokens(front).float().mean(0)
        else:
            before = target.embed(front).mean(0)
        found.append(head.compressor(tokens.to(target.device, torch.float32, copy=True), before))
    return found
