"""An early exit as what a run trains (FastVLM, arXiv 2510.22641: imitation of deep states and of the target's law).

What drafts in serving is the target's own first layers over true and drafted tokens alike, so no step of a draft stands
on a guess of another: there is nothing to unroll, and every token of an answer is one example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_specvlm.draft import exit_checkpoint
from vllm_specvlm.draft.early_exit import EarlyExit
from vllm_specvlm.draft.exit_config import ExitConfig
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import vocabulary
from vllm_specvlm.train.acceptance import TREE, Acceptance, count, ranks_of
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.learning import Figures
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.losses import law, places, weighted
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import Recipe
from vllm_specvlm.train.target import Target


class ExitStudent:
    """See `Student`. Lessons hold the state entering layer `layers`, read one slot ahead: that of the token itself."""

    def create(self, recipe: Recipe, target: Target, lessons: Sequence[Lesson], folder: Path) -> EarlyExit:
        """A network that passes the state on at first, normalised as the target's features are."""
        assert recipe.exit is not None
        text = target.text_config
        if recipe.exit.layers >= text.num_hidden_layers:
            raise RecipeError(
                f"[exit] layers is {recipe.exit.layers}, and the target has {text.num_hidden_layers}; write fewer."
            )
        size = min(recipe.exit.vocabulary, text.vocab_size)
        config = ExitConfig(
            hidden_size=text.hidden_size,
            layers=recipe.exit.layers,
            blocks=recipe.exit.blocks,
            intermediate_size=recipe.exit.intermediate_size or text.intermediate_size,
            target_vocabulary=text.vocab_size,
            vocabulary=size,
            rms_norm_eps=text.rms_norm_eps,
        )
        torch.manual_seed(recipe.seed)
        network = EarlyExit(config)
        answers = (lesson.ids[lesson.slots[lesson.drafted] + 2] for lesson in lessons)
        network.vocabulary.copy_(vocabulary.choose(answers, size, target.end_ids, text.vocab_size))
        scale = torch.cat([lesson.final for lesson in lessons]).float().square().mean().sqrt().item()
        with torch.no_grad():
            network.lm_head.weight.copy_(target.output_rows(network.vocabulary).float())
            network.norm_output.weight.fill_(scale)
        return network.to(target.device)

    def begin_step(self, network: EarlyExit, share: float) -> None:
        """Nothing changes on the way."""

    def learn(
        self,
        network: EarlyExit,
        target: Target,
        output_rows: Tensor,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        ranks: Ranks,
        precision: AbstractContextManager[Any],
    ) -> Figures:
        """The loss is the mean over all tokens of all processes."""
        total = torch.tensor([float(sum(lesson.tokens for lesson in lessons))], device=target.device)
        tokens = float(ranks.total(total))
        size = len(lessons) // recipe.training.accumulate
        sums: dict[str, Tensor] = {}
        for start in range(0, len(lessons), size):
            some = lessons[start : start + size]
            final, normaliser, best = (
                torch.cat([getattr(lesson, name) for lesson in some]).to(target.device)
                for name in ("final", "normaliser", "best")
            )
            wanted = law(final, output_rows, normaliser, best, network.vocabulary)
            with precision:
                outputs = network(_states(some, target))
                logits = network.logits(outputs)
            found = weighted(recipe.losses, outputs, final.float(), logits, wanted)
            found = {name: values.sum() / max(1.0, tokens) for name, values in found.items()}
            loss = torch.stack(list(found.values())).sum()
            loss.backward()
            right = (logits.detach().argmax(-1) == wanted.best).sum() / max(1.0, tokens)
            for name, value in (*found.items(), ("agreement", right), ("loss", loss)):
                sums[name] = sums.get(name, torch.zeros((), device=target.device)) + value.detach()
        ranks.add_gradients(network.parameters())
        names = sorted(sums)
        values = ranks.total(torch.stack([sums[name].double() for name in names])).tolist()
        parts = dict(zip(names, values, strict=True))
        return Figures(parts.pop("loss"), parts, tokens=round(tokens), steps=1)

    @torch.no_grad()
    def measure(
        self,
        network: EarlyExit,
        target: Target,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        precision: AbstractContextManager[Any],
    ) -> Acceptance:
        """Greedy drafting: as long as drafts are accepted, a draft stands on the true text, whatever its step."""
        steps = max(recipe.check.chain, len(TREE))
        ranks = []
        for lesson in lessons:
            wanted = places(lesson.ids[lesson.slots[lesson.drafted] + 2].to(target.device), network.vocabulary)
            with precision:
                logits = network.logits(network(_states([lesson], target)))
            ranks.append(ranks_of(logits, wanted).cpu().expand(steps, -1))
        return count(lessons, ranks, recipe.check.chain)

    def load(self, folder: Path) -> tuple[EarlyExit, TargetId]:
        """See `exit_checkpoint.load`."""
        return exit_checkpoint.load(folder)

    def save(self, folder: Path, network: EarlyExit, target: TargetId, provenance: Mapping[str, Any]) -> None:
        """See `exit_checkpoint.save`."""
        exit_checkpoint.save(folder, network, target, provenance)


def _states(lessons: Sequence[Lesson], target: Target) -> Tensor:
    """float32 [tokens, hidden]: what drafts each token of the answers."""
    return torch.cat([lesson.features[lesson.drafted] for lesson in lessons]).to(target.device).float()
