"""Lessons laid out as the rows of slots that serving's drafter sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vllm_specvlm.train.lesson import Lesson


@dataclass(slots=True)
class Slots:
    """B lessons, padded on the right to S slots, of which up to A are drafted from.

    Slot p joins the target's feature at p with the token at p + 1. A picture's k compressed tokens stand in its range's
    first k slots; the range's other slots do not exist, and the numbers of all others stay what they were. Slots behind
    the last that is drafted from do not exist either.
    """

    numbers: Tensor
    """int64 [B, S]: the slots' numbers in the text, which are their positions; 0 in padding."""
    next_ids: Tensor
    """int64 [B, S]: the token behind each slot; -1 where that stands for a picture, in visual slots and in padding."""
    is_visual: Tensor
    """bool [B, S]."""
    features: Tensor
    """float32 [B, S, F]; zeros in visual slots and padding."""
    picture: Tensor
    """int64 [B, S]: for text slots, the last picture whose range is over, counted through the batch; -1: none."""
    drafted: Tensor
    """int64 [B, A]: columns of the slots that are drafted from; 0 in padding."""
    depths: Tensor
    """int64 [B, A]: see `Lesson.depths`; -1 in padding."""
    final: Tensor
    """float32 [B, A, H]: see `Lesson.final`."""
    settled: Tensor
    """float32 [B, A, H]: see `Lesson.settled`; [B, A, 0] of lessons that have none."""
    normaliser: Tensor
    """float32 [B, A]."""
    best: Tensor
    """int64 [B, A]."""
    wanted: Tensor
    """int64 [B, A]: the token two behind each drafted slot: what the conversation says."""

    def to(self, device: torch.device) -> Slots:
        """The same on `device`."""
        return Slots(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})


def lay_out(lessons: Sequence[Lesson], kept: Sequence[Sequence[int]]) -> Slots:
    """See `Slots`; `kept` has the number of compressed tokens of each lesson's pictures, none more than the range."""
    rows, first_picture = [], 0
    for lesson, counts in zip(lessons, kept, strict=True):
        rows.append(_row(lesson, counts, first_picture))
        first_picture += len(counts)
    return Slots(
        **{
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=padding)
            for name, padding in _PADDING.items()
        }
    )


_PADDING = {
    "numbers": 0,
    "next_ids": -1,
    "is_visual": False,
    "features": 0.0,
    "picture": -1,
    "drafted": 0,
    "depths": -1,
    "final": 0.0,
    "settled": 0.0,
    "normaliser": 0.0,
    "best": 0,
    "wanted": 0,
}


def _row(lesson: Lesson, kept: Sequence[int], first_picture: int) -> dict[str, Tensor]:
    ids, text = lesson.ids, lesson.slots
    behind = ids[text + 1].clone()
    last_picture = torch.full_like(text, -1)
    for index, (start, length) in enumerate(lesson.pictures):
        behind[(text + 1 >= start) & (text + 1 < start + length)] = -1
        last_picture[text >= start + length] = first_picture + index
    visual = [torch.arange(start, start + count) for (start, _), count in zip(lesson.pictures, kept, strict=True)]
    numbers, order = torch.cat([text, *visual]).sort()
    column = torch.empty_like(order)
    column[order] = torch.arange(len(order))
    width, total = len(text), len(order)

    def spread(values: Tensor, padding: float) -> Tensor:
        """`values` of the text slots in the columns of all."""
        spread = values.new_full((total, *values.shape[1:]), padding)
        spread[column[:width]] = values
        return spread

    return {
        "numbers": numbers,
        "next_ids": spread(behind, -1),
        "is_visual": order >= width,
        "features": spread(lesson.features.float(), 0.0),
        "picture": spread(last_picture, -1),
        "drafted": column[lesson.drafted],
        "depths": lesson.depths,
        "final": lesson.final.float().clone(),
        "settled": lesson.final.new_zeros(len(lesson.final), 0).float()
        if lesson.settled is None
        else lesson.settled.float().clone(),
        "normaliser": lesson.normaliser.clone(),
        "best": lesson.best.clone(),
        "wanted": ids[text[lesson.drafted] + 2],
    }
