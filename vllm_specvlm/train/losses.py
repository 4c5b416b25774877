"""The menu of losses, per slot.

The head drafts some tokens only. The target's probabilities p of those are its own, over its whole vocabulary; the mass
that it gives to all others is left out, so that a slot counts in the share of what can be drafted there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_specvlm.train.recipe import LossRecipe

PER_TOKEN = ("ce", "kl", "reverse_kl", "hard_ce", "smooth_l1", "cosine")
"""Names of what `weighted` gives, where the recipe has a weight."""


@dataclass(slots=True)
class Law:
    """What the target wants at n slots, N tokens being the head's vocabulary."""

    log_probabilities: Tensor
    """float32 [n, N]: log p of the head's tokens; their exponentials sum to 1 or less."""
    best: Tensor
    """int64 [n]: the target's best token's place in the head's vocabulary; -1 if it is not in it."""

    def rows(self, which: Tensor) -> Law:
        """At some of the slots."""
        return Law(self.log_probabilities[which], self.best[which])


def law(final: Tensor, output_rows: Tensor, normaliser: Tensor, best: Tensor, vocabulary: Tensor) -> Law:
    """The target's law at n slots.

    Args:
        final: [n, H]: behind the target's final norm.
        output_rows: [N, H]: its output layer's rows of the head's tokens.
        normaliser: float32 [n]: see `Lesson`.
        best: int64 [n]: see `Lesson`.
        vocabulary: int64 [N], ascending: the head's tokens.
    """
    logits = (final.to(output_rows.dtype) @ output_rows.T).float()
    return Law((logits - normaliser[:, None]).clamp(max=0.0), places(best, vocabulary))


def places(tokens: Tensor, vocabulary: Tensor) -> Tensor:
    """int64 [n]: places of `tokens` in the ascending `vocabulary`; -1 for those not in it."""
    found = torch.searchsorted(vocabulary, tokens).clamp(max=len(vocabulary) - 1)
    return torch.where(vocabulary[found] == tokens, found, -1)


def ce(scores: Tensor, wanted: Law) -> Tensor:
    """Cross-entropy with the target's law, - sum p log q: float32 [n] of the head's log q [n, N]."""
    return -(wanted.log_probabilities.exp() * scores).sum(-1)


def kl(scores: Tensor, wanted: Law) -> Tensor:
    """sum p (log p - log q): `ce` less the target's own entropy; the same gradient."""
    return (wanted.log_probabilities.exp() * (wanted.log_probabilities - scores)).sum(-1)


def reverse_kl(scores: Tensor, wanted: Law) -> Tensor:
    """m sum q (log q - log (p / m)), m being the target's mass on the head's tokens: finds modes, not means."""
    mass = wanted.log_probabilities.logsumexp(-1, keepdim=True)
    return mass.exp().squeeze(-1) * (scores.exp() * (scores - wanted.log_probabilities + mass)).sum(-1)


def hard_ce(scores: Tensor, wanted: Law) -> Tensor:
    """Cross-entropy with the target's best token; 0 where the head cannot draft that."""
    likely = -scores.gather(-1, wanted.best.clamp(min=0)[:, None]).squeeze(-1)
    return torch.where(wanted.best >= 0, likely, 0.0)


def smooth_l1(outputs: Tensor, final: Tensor) -> Tensor:
    """SmoothL1 between the head's outputs [n, H] and the target's features [n, H] a slot on, mean over channels."""
    return F.smooth_l1_loss(outputs.float(), final, reduction="none").mean(-1)


def cosine(outputs: Tensor, final: Tensor) -> Tensor:
    """1 less the cosine between outputs [n, H] and the target's features [n, H] (FastVLM's imitation loss)."""
    return 1 - F.cosine_similarity(outputs.float(), final.float(), dim=-1)


def weighted(recipe: LossRecipe, outputs: Tensor, final: Tensor, logits: Tensor, wanted: Law) -> dict[str, Tensor]:
    """By loss of the recipe: its weight times its value, float32 [n].

    Args:
        recipe: the weights.
        outputs: [n, H]: of the head.
        final: float32 [n, H]: the target's features that they predict.
        logits: float32 [n, N]: of the head.
        wanted: the target's law there.
    """
    scores = logits.log_softmax(-1)
    found = {}
    for name, loss in (("ce", ce), ("kl", kl), ("reverse_kl", reverse_kl), ("hard_ce", hard_ce)):
        if weight := getattr(recipe, name):
            found[name] = weight * loss(scores, wanted)
    if recipe.smooth_l1:
        found["smooth_l1"] = recipe.smooth_l1 * smooth_l1(outputs, final)
    if recipe.cosine:
        found["cosine"] = recipe.cosine * cosine(outputs, final)
    return found
