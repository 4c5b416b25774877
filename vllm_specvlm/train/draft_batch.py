"""Lessons laid out as the rows that a draft VLM reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.target import Target


@dataclass(slots=True)
class DraftBatch:
    """B lessons, padded on the right to T rows; m rows in all are drafted from.

    Every id has a row, but of a picture of n tokens of which k are left only the first k have: they stand at those
    positions, and the others do not exist. Rows behind the last that is drafted from do not exist either.
    """

    ids: Tensor
    """int64 [B, T]."""
    positions: Tensor
    """int64 [B, T], or [3, B, T] with M-RoPE."""
    seen: Tensor
    """bool [B, T]: rows that are no padding."""
    is_visual: Tensor
    """bool [B, T]."""
    visual: Tensor | None
    """[n, H]: see `SmallVLM.forward`; gradients flow to the network."""
    drafted: Tensor
    """int64 [m, 2]: lesson and row of those that are drafted from, lesson by lesson."""


def lay_out(network: SmallVLM, target: Target, lessons: Sequence[Lesson]) -> DraftBatch:
    """See `DraftBatch`; on the target's device."""
    looks: list[Tensor] = []
    ids, positions, marks, drafted = [], [], [], []
    for at, lesson in enumerate(lessons):
        # A slot is drafted from the token behind it.
        from_ = lesson.slots[lesson.drafted] + 1
        count = int(from_[-1]) + 1
        there, visual = torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        for (start, length), tokens in zip(lesson.pictures, lesson.visual, strict=True):
            look = network.look(tokens.to(target.device, torch.float32, copy=True))
            looks.append(look)
            there[start + len(look) : start + length] = False
            visual[start : start + len(look)] = True
        rows = there.nonzero().flatten()
        ids.append(lesson.ids[rows])
        positions.append(rows[:, None] if lesson.positions is None else lesson.positions[:, rows].T)
        marks.append(visual[rows])
        places = torch.searchsorted(rows, from_)
        drafted.append(torch.stack([torch.full_like(places, at), places], dim=1))
    lengths = torch.tensor([len(row) for row in ids])
    laid = pad_sequence(positions, batch_first=True)
    device = target.device
    return DraftBatch(
        ids=pad_sequence(ids, batch_first=True).to(device),
        positions=(laid[..., 0] if laid.shape[-1] == 1 else laid.permute(2, 0, 1)).to(device),
        seen=(torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
        is_visual=pad_sequence(marks, batch_first=True).to(device),
        visual=torch.cat(looks) if looks else None,
        drafted=torch.cat(drafted).to(device),
    )
