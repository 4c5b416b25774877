"""Lessons, a head and a target made of random numbers, for tests that need no model."""

from __future__ import annotations

from typing import Any

import torch

from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig
from vllm_specvlm.train.lesson import Lesson, drafted_slots

HIDDEN, TOKENS, DRAFTED = 16, 40, 24


class TableTarget:
    """What `view` and `learn` ask of a target."""

    device = torch.device("cpu")
    hidden_size = HIDDEN

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = torch.randn(TOKENS, HIDDEN, generator=generator)
        self.output = torch.randn(TOKENS, HIDDEN, generator=generator)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]

    def output_rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.output[ids]


def head(kind: str = "pool", seed: int = 1, **changes: Any) -> FeatureHead:
    """A head that drafts the first tokens."""
    torch.manual_seed(seed)
    numbers = {"ratio": 3.0} if kind in ("pool", "prune", "conv") else {}
    values: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "target_vocabulary": TOKENS,
        "vocabulary": DRAFTED,
        "compressor": CompressorConfig(kind, **numbers),
    }
    return FeatureHead(HeadConfig(**(values | changes)))


def lesson(
    seed: int, spoken: list[bool], pictures: list[tuple[int, int]], target: TableTarget, features: int = HIDDEN
) -> Lesson:
    """A text of random ids whose features are random."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, TOKENS, (len(spoken),), generator=generator)
    drafted, depths = drafted_slots(torch.tensor(spoken))
    end = int(drafted[-1]) + 1
    seen = [(start, length) for start, length in pictures if start + length <= end]
    text = torch.ones(end, dtype=torch.bool)
    for start, length in seen:
        text[start : start + length] = False
    slots = text.nonzero().flatten()
    final = torch.randn(len(drafted), HIDDEN, generator=generator)
    logits = final @ target.output.T
    return Lesson(
        ids=ids,
        pictures=seen,
        visual=[torch.randn(length, HIDDEN, generator=generator) for _, length in seen],
        slots=slots,
        features=torch.randn(len(slots), features, generator=generator),
        drafted=torch.searchsorted(slots, drafted),
        depths=depths,
        final=final,
        normaliser=logits.logsumexp(-1),
        best=logits.argmax(-1),
    )


def marks(text: str) -> list[bool]:
    """`spoken` from a drawing: a is an id of an answer, anything else is not."""
    return [letter == "a" for letter in text]
