"""How many tokens a check would give: the head's drafts against the target's own greedy answers, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.losses import places
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.unroll import unroll
from vllm_specvlm.train.views import view

TREE = (4, 2, 1, 1, 1)
"""Children of each node of the tree estimate, level by level: 4 + 8 + 8 + 8 + 8 nodes."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Tokens per check of the target, its own token counted."""

    chain: float
    tree: float
    agreement: float
    """Share of first drafts that are right."""


@torch.no_grad()
def measure(
    head: FeatureHead,
    target: Target,
    lessons: Sequence[Lesson],
    chain: int,
    batch: int,
    context: AbstractContextManager[object] | None = None,
) -> Acceptance:
    """Play greedy drafting through `lessons`, whose answers are the target's own greedy ones.

    As long as drafts are accepted, what stands before the next one is the true text; so outputs that were fed the
    true tokens decide every draft that matters, and for greedy decoding the count is exact up to rounding.

    Args:
        head: left in the mode it was in.
        target: looks up embeddings.
        lessons: held out.
        chain: tokens drafted per check.
        batch: lessons at a time.
        context: such as autocast.
    """
    was_training = head.training
    head.eval()
    steps = max(chain, len(TREE))
    ordered = sorted(lessons, key=lambda lesson: lesson.tokens)
    found: list[Tensor] = []
    for start in range(0, len(ordered), batch):
        some = ordered[start : start + batch]
        seen = view(head, target, some)
        wanted = places(seen.slots.wanted, head.vocabulary)
        with context or nullcontext():
            outputs = unroll(head, seen.slots, seen.embeddings, seen.visual, steps)
            ranks = torch.stack([ranks_of(head.logits(output), wanted) for output in outputs]).cpu()
        found += [ranks[:, row] for row in range(len(some))]
    head.train(was_training)
    return count(ordered, found, chain)


def count(lessons: Sequence[Lesson], ranks: Sequence[Tensor], chain: int) -> Acceptance:
    """Play drafting through answers.

    Args:
        lessons: with the target's own greedy answers.
        ranks: for each, int64 [steps, >= its tokens]: at each slot, how many tokens a draft's i-th step likes better
            than the true one.
        chain: tokens drafted per check.
    """
    tokens = right = chains = trees = 0
    for lesson, found in zip(lessons, ranks, strict=True):
        for first, end in _answers(lesson.depths):
            mine = found[:, first:end].tolist()
            tokens += end - first
            right += sum(rank == 0 for rank in mine[0])
            chains += _checks(mine, (1,) * chain)
            trees += _checks(mine, TREE)
    return Acceptance(tokens / max(1, chains), tokens / max(1, trees), right / max(1, tokens))


def ranks_of(logits: Tensor, wanted: Tensor) -> Tensor:
    """int64 [...]: how many tokens a drafter [..., N] likes better than the true one [...]; N where that is -1, a token
    it cannot draft."""
    own = logits.gather(-1, wanted.clamp(min=0)[..., None])
    return torch.where(wanted >= 0, (logits > own).sum(-1), logits.shape[-1])


def _answers(depths: Tensor) -> list[tuple[int, int]]:
    """Stretches of drafted slots, one for each answer."""
    starts = (depths == 0).nonzero().flatten().tolist()
    return list(zip(starts, [*starts[1:], len(depths)], strict=True))


def _checks(ranks: list[list[int]], widths: Sequence[int]) -> int:
    """Checks until an answer is complete; `ranks[i][p]`: rank of the true token at slot p in a draft's step i.

    A check that begins at slot p keeps the draft's tokens up to the first whose rank is no less than its level's width,
    and adds one of the target's own.
    """
    slot = count = 0
    while slot < len(ranks[0]):
        kept = 0
        while kept < len(widths) and slot + kept < len(ranks[0]) and ranks[kept][slot + kept] < widths[kept]:
            kept += 1
        slot += kept + 1
        count += 1
    return count
