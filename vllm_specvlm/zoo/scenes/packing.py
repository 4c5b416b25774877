"""Several questions about one picture in one row: the picture is computed once, and no question sees another.

A row is the picture's prefix and then one segment per question with its answer. Positions start again after the prefix
in every segment, and a segment sees the prefix and itself: to the model each is a conversation of its own, token for
token what the chat template makes of it. The turns of a dialogue are one segment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.language_model import IM_END, IMAGE_TOKEN_ID
from vllm_specvlm.zoo.scenes.settings import Setting
from vllm_specvlm.zoo.scenes.turn import Sample, Turn

_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
FACT_WEIGHT = 3.0
TEXT_BUDGET = 300  # tokens of questions and answers a picture; questions that do not fit are left out


@dataclass(frozen=True)
class Row:
    """One picture's row.

    Attributes
    ----------
    ids, positions:
        Tokens and their positions.
    segment:
        0 for the prefix, then the number of the segment a token belongs to.
    weight:
        What a token counts in the loss: nothing outside answers, 1 in an answer (its end token included), FACT_WEIGHT
        where an answer states a fact. How something is said is learnt soon; what is seen is what takes long.
    """

    ids: list[int]
    positions: list[int]
    segment: list[int]
    weight: list[float]


@dataclass(frozen=True)
class Rows:
    """Rows padded on the right: ``ids``, ``positions`` int64 [B, T], ``weight`` float32 [B, T], ``mask`` bool
    [B, 1, T, T].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    weight: torch.Tensor
    mask: torch.Tensor


def prefix_ids(tokenizer: PreTrainedTokenizerFast, setting: Setting) -> list[int]:
    """What stands before the first question: the user's turn opened, and the picture."""
    opened: list[int] = tokenizer(_USER).input_ids
    return opened + [IMAGE_TOKEN_ID] * setting.tokens


def _weights(turn: Turn, offsets: Sequence[tuple[int, int]]) -> list[float]:
    """Weights of the answer's tokens, given the span of characters of each."""
    ways = [re.escape(way) for fact in turn.facts for way in fact.split("|")]
    stated = re.compile(rf"(?<!\w)(?:{'|'.join(ways)})(?!\w)", re.IGNORECASE) if ways else None
    spans = [found.span() for found in stated.finditer(turn.answer)] if stated else []
    return [
        FACT_WEIGHT if any(first < end and start < stop for start, end in spans) else 1.0 for first, stop in offsets
    ]


def _segment(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weight: list[float] = []
    for index, turn in enumerate(turns):
        before = tokenizer("\n" + (_USER if index else "") + turn.question + _ASSISTANT).input_ids
        answer = tokenizer(turn.answer, return_offsets_mapping=True)
        ids += [*before, *answer.input_ids, IM_END]
        weight += [0.0] * len(before) + _weights(turn, answer.offset_mapping) + [1.0]
    return ids, weight


def pack(tokenizer: PreTrainedTokenizerFast, sample: Sample, setting: Setting) -> Row:
    """The row of ``sample``, with as many of its questions as TEXT_BUDGET allows (one at least)."""
    prefix = prefix_ids(tokenizer, setting)
    row = Row(list(prefix), list(range(len(prefix))), [0] * len(prefix), [0.0] * len(prefix))
    groups = [sample.turns] if sample.chain else [(turn,) for turn in sample.turns]
    for group in groups:
        ids, weight = _segment(tokenizer, group)
        if row.segment[-1] and len(row.ids) - len(prefix) + len(ids) > TEXT_BUDGET:
            continue
        number = row.segment[-1] + 1
        row.ids.extend(ids)
        row.positions.extend(range(len(prefix), len(prefix) + len(ids)))
        row.segment.extend([number] * len(ids))
        row.weight.extend(weight)
    return row


def collate(rows: Sequence[Row]) -> Rows:
    """Pad ``rows`` and make their mask. A padding token sees itself alone."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), IM_END)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    weight = torch.zeros(len(rows), longest)
    mask = torch.zeros(len(rows), 1, longest, longest, dtype=torch.bool)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        positions[index, :length] = torch.tensor(row.positions)
        weight[index, :length] = torch.tensor(row.weight)
        segment = torch.full((longest,), -1)
        segment[:length] = torch.tensor(row.segment)
        mine = (segment[:, None] == segment) | ((segment[:, None] > 0) & (segment == 0))
        mask[index, 0] = causal & mine
    return Rows(ids, positions, weight, mask)
