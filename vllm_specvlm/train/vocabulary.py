"""Which tokens a head drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import torch
from torch import Tensor


def choose(answers: Iterable[Tensor], size: int, always: Collection[int], target_vocabulary: int) -> Tensor:
    """The most frequent tokens of the answers.

    Args:
        answers: int64 ids of answers.
        size: tokens wanted; no more than the target has are given.
        always: the tokens that end answers, which are in whatever happens.
        target_vocabulary: tokens the target has.

    Returns:
        int64 [min(size, target_vocabulary)], ascending. If the answers hold fewer tokens, those of the lowest ids come
        along: tokenizers learn frequent pieces first.
    """
    size = min(size, target_vocabulary)
    seen: Counter[int] = Counter()
    for answer in answers:
        seen.update(answer.tolist())
    ranked = [*sorted(always), *(token for token, _ in sorted(seen.items(), key=lambda each: (-each[1], each[0])))]
    chosen = dict.fromkeys([*ranked, *range(target_vocabulary)])
    return torch.tensor(sorted(list(chosen)[:size]))
