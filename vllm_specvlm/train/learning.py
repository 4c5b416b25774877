"""One step's gradient: the head sees lessons, drafts, and is told what the target wanted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.losses import PER_TOKEN, law, smooth_l1, weighted
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import Recipe
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.unroll import unroll
from vllm_specvlm.train.views import view


@dataclass(slots=True)
class Figures:
    """What a step, or several, came to: sums over `steps` of them, and of a part over those that had it (`counted`)."""

    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    gradient: float = 0.0
    tokens: int = 0
    """Of answers that were learned from, in all processes."""
    steps: int = 0
    counted: dict[str, int] = field(default_factory=dict)

    def add(self, other: Figures, gradient: float) -> None:
        """Take in one more step, the norm of its gradient before clipping included."""
        self.loss += other.loss
        self.gradient += gradient
        self.tokens += other.tokens
        self.steps += 1
        for name, value in other.parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value
            self.counted[name] = self.counted.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Per step that had it."""
        whole = {name: value / max(1, self.steps) for name, value in (("loss", self.loss), ("gradient", self.gradient))}
        return whole | {name: value / self.counted[name] for name, value in self.parts.items()}


def learn(
    head: FeatureHead,
    target: Target,
    output_rows: Tensor,
    lessons: Sequence[Lesson],
    recipe: Recipe,
    ranks: Ranks,
    precision: AbstractContextManager[Any],
) -> Figures:
    """Add one step's gradients to the parameters, summed over all processes.

    The loss is, for each unrolled step, the mean over all slots of all processes that are deep enough, then the mean
    over steps, weighted by `step_decay`; a batch in several parts gives the same gradient as in one.

    A head whose gate learns from what it draws sees every lesson twice, with a draw each (see `_gate_loss`).

    Args:
        head: in training mode.
        target: looks up embeddings.
        output_rows: [N, H]: the target's output layer, the head's tokens only.
        lessons: of this process, each with something to draft, as `lesson_round.prepare` makes them.
        recipe: losses, unrolled steps and parts.
        ranks: the processes.
        precision: autocast or not; entered once a part.
    """
    steps = recipe.training.unroll
    draws = 2 if recipe.losses.gate_score and head.config.compressor.kind == "select" else 1
    lessons = [lesson for lesson in lessons for _ in range(draws)]
    counts = torch.zeros(steps + 1, dtype=torch.float64, device=target.device)
    for lesson in lessons:
        deep = torch.bincount(lesson.depths, minlength=steps)
        counts[:steps] += deep.flip(0).cumsum(0).flip(0)[:steps].to(counts.device)
        counts[steps] += len(lesson.pictures) if head.sees else 0
    ranks.total(counts)
    totals = counts.tolist()
    decay = recipe.losses.step_decay
    used = [decay**step if totals[step] else 0.0 for step in range(steps)]
    shares = [weight / sum(used) / max(1.0, total) for weight, total in zip(used, totals, strict=False)]
    size = len(lessons) // recipe.training.accumulate
    sums: dict[str, Tensor] = {}
    for start in range(0, len(lessons), size):
        some = lessons[start : start + size]
        loss = _part(head, target, output_rows, some, recipe, precision, shares, totals, sums)
        loss.backward()
    ranks.add_gradients(head.parameters())
    parts = ranks.totals(sums, _names(recipe, totals), target.device)
    return Figures(parts.pop("loss"), parts, tokens=round(totals[0]) // draws, steps=1)


def _names(recipe: Recipe, totals: Sequence[float]) -> list[str]:
    """What a step is summed up as, the same in all processes: one whose answers are all short has less to add."""
    weights = (*PER_TOKEN, "intermediate")
    names = ["loss", "covered", "agreement", *(name for name in weights if getattr(recipe.losses, name))]
    steps = recipe.training.unroll
    if steps > 1 and totals[steps - 1]:
        names.append("last_agreement")
    return names + (["gate", "visual_share"] if totals[steps] else [])


def _part(
    head: FeatureHead,
    target: Target,
    output_rows: Tensor,
    lessons: Sequence[Lesson],
    recipe: Recipe,
    precision: AbstractContextManager[Any],
    shares: Sequence[float],
    totals: Sequence[float],
    sums: dict[str, Tensor],
) -> Tensor:
    """The loss of some lessons, already a share of the whole batch's; adds to `sums`."""

    def note(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), device=target.device)) + value.detach()

    seen = view(head, target, lessons)
    slots = seen.slots
    present = slots.depths >= 0
    wanted = law(slots.final[present], output_rows, slots.normaliser[present], slots.best[present], head.vocabulary)
    row_of = present.nonzero()[:, 0]
    per_lesson = torch.zeros(len(lessons), device=target.device)
    loss = torch.zeros((), device=target.device)
    with precision:
        middles: list[Tensor] = []
        outputs = unroll(head, slots, seen.embeddings, seen.visual, recipe.training.unroll, middles)
        for step, output in enumerate(outputs):
            deep = (slots.depths >= step)[present].nonzero().flatten()
            if not len(deep):
                continue
            states = output[present][deep]
            logits = head.logits(states)
            here = wanted.rows(deep) if step else wanted
            with torch.autocast(target.device.type, enabled=False):
                found = weighted(recipe.losses, states, slots.final[present][deep], logits, here)
                if weight := recipe.losses.intermediate:
                    middle, settled = middles[step][present][deep], slots.settled[present][deep]
                    found["intermediate"] = weight * smooth_l1(middle, settled)
            for name, values in found.items():
                note(name, values.sum() * shares[step])
                loss = loss + values.sum() * shares[step]
                per_lesson = per_lesson.index_add(0, row_of[deep], values * shares[step])
            if step in (0, len(outputs) - 1):
                agreed = (logits.detach().argmax(-1) == here.best).sum() / max(1.0, totals[step])
                note("agreement" if step == 0 else "last_agreement", agreed)
    note("covered", wanted.log_probabilities.exp().sum() / max(1.0, totals[0]))
    pictures = totals[len(shares)]
    if pictures:
        choice = _gate_loss(seen.compressed, per_lesson, recipe, pictures)
        note("gate", choice)
        loss = loss + choice
        shown = sum(float(p.cost.detach()) for each in seen.compressed for p in each)
        note("visual_share", torch.tensor(shown / pictures, device=target.device))
    note("loss", loss)
    return loss


def _gate_loss(
    compressed: Sequence[Sequence[Compressed]], per_lesson: Tensor, recipe: Recipe, pictures: float
) -> Tensor:
    """What visual tokens cost, and the score-function loss of what a gate drew (Williams 1992).

    Lessons come in pairs, one lesson twice with a draw each, and its loss is compared with its twin's, which does not
    depend on its own draw (Kool et al. 2019): unbiased, and nothing of what makes lessons hard or long is in the
    difference. Against other lessons' losses that is more than what a branch is worth, and a gate drifts into a corner
    by chance.
    """
    loss = per_lesson.new_zeros(())
    for each in compressed:
        for picture in each:
            if picture.cost.requires_grad:  # a cost that nobody can lower is none
                loss = loss + recipe.losses.gate_cost * picture.cost / pictures
    if recipe.losses.gate_score:
        losses = per_lesson.detach()
        for row, each in enumerate(compressed):
            for log_probability in (picture.log_probability for picture in each):
                if log_probability is not None and log_probability.requires_grad:
                    loss = loss + recipe.losses.gate_score * (losses[row] - losses[row ^ 1]) * log_probability
    return loss
