"""A draft VLM as what a run trains (Spec-LLaVA, MASSV: self-distillation on what the target answers).

What drafts in serving reads true and drafted tokens alike, so no step of a draft stands on a guess of another: there is
nothing to unroll, and every token of an answer is one example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import draft_checkpoint, new_draft
from vllm_specvlm.train.acceptance import TREE, Acceptance, count, ranks_of
from vllm_specvlm.train.draft_batch import lay_out
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.learning import Figures
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.losses import law, weighted
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import Recipe
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.target import Target

_ROWS = 256
"""Tokens whose logits over the whole vocabulary are there at a time."""


class DraftStudent:
    """See `Student`."""

    def __init__(self, target_folder: Path) -> None:
        """`target_folder`: of the target's checkpoint, whose tower, tokenizer and processor the draft shares."""
        self._target_folder = target_folder

    def create(self, recipe: Recipe, target: Target, lessons: Sequence[Lesson], folder: Path) -> SmallVLM:
        """See `new_draft.create`."""
        assert recipe.draft is not None
        network = new_draft.create(recipe.draft, target, lessons, recipe.seed, folder)
        if network.hidden_size != target.hidden_size and (recipe.losses.smooth_l1 or recipe.losses.cosine):
            raise RecipeError(
                f"The draft is {network.hidden_size} wide and its target {target.hidden_size}, and [losses] smooth_l1 "
                "and cosine compare their states; set both to 0 and give ce or kl a weight."
            )
        return network

    def begin_step(self, network: SmallVLM, share: float) -> None:
        """Nothing changes on the way."""

    def learn(
        self,
        network: SmallVLM,
        target: Target,
        output_rows: Tensor,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        ranks: Ranks,
        precision: AbstractContextManager[Any],
    ) -> Figures:
        """The loss is the mean over all tokens of all processes."""
        total = torch.tensor([float(sum(lesson.tokens for lesson in lessons))], device=target.device)
        tokens = max(1.0, float(ranks.total(total)))
        size = len(lessons) // recipe.training.accumulate
        sums: dict[str, Tensor] = {}
        for start in range(0, len(lessons), size):
            some = lessons[start : start + size]
            with precision:
                states = drafting_states(network, target, some)
            # The graph below the states is walked once, with what all their parts come to.
            leaf = states.detach().requires_grad_()
            first = 0
            for part in leaf.split(_ROWS):
                rows = slice(first, first + len(part))
                first += len(part)
                found = _part(network, target, output_rows, some, rows, part, recipe, precision)
                found = {name: value / tokens for name, value in found.items()}
                found["loss"].backward()
                for name, value in found.items():
                    sums[name] = sums.get(name, torch.zeros((), device=target.device)) + value.detach()
            assert leaf.grad is not None
            states.backward(leaf.grad)
        ranks.add_gradients([each for each in network.parameters() if each.requires_grad])
        names = sorted(sums)
        values = ranks.total(torch.stack([sums[name].double() for name in names])).tolist()
        parts = dict(zip(names, values, strict=True))
        return Figures(parts.pop("loss"), parts, tokens=round(tokens), steps=1)

    @torch.no_grad()
    def measure(
        self,
        network: SmallVLM,
        target: Target,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        precision: AbstractContextManager[Any],
    ) -> Acceptance:
        """Greedy drafting: as long as drafts are accepted, a draft stands on the true text, whatever its step."""
        steps = max(recipe.check.chain, len(TREE))
        network.eval()
        ranks = []
        for lesson in lessons:
            wanted = lesson.ids[lesson.slots[lesson.drafted] + 2].to(target.device)
            with precision:
                logits = network.logits(drafting_states(network, target, [lesson]))
            ranks.append(ranks_of(logits, wanted).cpu().expand(steps, -1))
        network.train()
        return count(lessons, ranks, recipe.check.chain)

    def load(self, folder: Path) -> tuple[SmallVLM, TargetId]:
        """See `draft_checkpoint.load`."""
        return draft_checkpoint.load(folder)

    def save(self, folder: Path, network: SmallVLM, target: TargetId, provenance: Mapping[str, Any]) -> None:
        """See `draft_checkpoint.save`."""
        draft_checkpoint.save(folder, network, self._target_folder, target, provenance)


def drafting_states(network: SmallVLM, target: Target, lessons: Sequence[Lesson]) -> Tensor:
    """[tokens, H]: what drafts each token of the answers."""
    batch = lay_out(network, target, lessons)
    states = network(batch.ids, batch.positions, batch.seen, batch.visual, batch.is_visual)
    drafted: Tensor = states[batch.drafted[:, 0], batch.drafted[:, 1]]
    return drafted.float()


def _part(
    network: SmallVLM,
    target: Target,
    output_rows: Tensor,
    lessons: Sequence[Lesson],
    rows: slice,
    states: Tensor,
    recipe: Recipe,
    precision: AbstractContextManager[Any],
) -> dict[str, Tensor]:
    """Sums over some of the tokens of `lessons`: each loss, their total, and how often the best token is right."""
    final, normaliser, best = (
        torch.cat([getattr(lesson, name) for lesson in lessons])[rows].to(target.device)
        for name in ("final", "normaliser", "best")
    )
    wanted = law(final, output_rows, normaliser, best, network.vocabulary)
    with precision:
        logits = network.logits(states)
    losses = weighted(recipe.losses, states, final.float(), logits, wanted)
    found = {name: values.sum() for name, values in losses.items()}
    found["loss"] = torch.stack(list(found.values())).sum()
    found["agreement"] = (logits.detach().argmax(-1) == wanted.best).sum()
    return found
