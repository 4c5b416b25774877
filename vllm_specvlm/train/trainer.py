"""A run: rounds of lessons, optimiser steps, checks and checkpoints."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import lesson_round, memory, provenance
from vllm_specvlm.train import recipe as recipes
from vllm_specvlm.train.checkpoints import Checkpoints, Saved
from vllm_specvlm.train.curve import Curve
from vllm_specvlm.train.errors import RecipeError, TrainingError
from vllm_specvlm.train.learning import Figures
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import AnswersRecipe, Recipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.student import N, Student
from vllm_specvlm.train.target import Target


def rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the learning rate: a linear rise, flat, then a linear fall over the last `decay` of all steps.

    Flat in the middle, so that a resumed run may be given another number of steps without a jump.
    """
    up = min(1.0, (step + 1) / max(1, warmup))
    down = min(1.0, (steps - step) / max(1.0, decay * steps)) if decay else 1.0
    return up * max(0.02, down)


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """Of the last checkpoint."""
    step: int
    rows: list[dict[str, str]]
    """Of the curve."""


class Trainer(Generic[N]):
    """One run of a recipe in one folder."""

    def __init__(
        self,
        student: Student[N],
        recipe: Recipe,
        target: Target,
        sources: Sources,
        out: Path,
        ranks: Ranks,
        tell: lesson_round.Tell = lambda share, doing: None,
        say: Callable[[str], None] = print,
        folder: Path = Path(),
    ) -> None:
        """Nothing is computed or written yet.

        `student` is the kind of network; `tell` hears of progress, `say` of what a reader should know; `folder` is the
        recipe's. Raises RecipeError if what a server recorded is of another target.
        """
        self._student: Student[N] = student
        self.recipe, self.target, self.sources, self.ranks = recipe, target, sources, ranks
        self.target_id: TargetId = target.id(recipe.target)
        self._tell, self._say, self._folder = tell, say, folder
        for sentence in sources.keep_only(self.target_id, target.special_tokens):
            say(sentence)
        self._checkpoints: Checkpoints[N] = Checkpoints(out, recipe.training.keep, student)
        self._step = 0
        self._seconds = 0.0
        self._answer_tokens = 0
        self._round: tuple[int, list[Lesson], list[list[int]]] | None = None
        self.network: N | None = None

    def run(self, resume: bool = False) -> Outcome:
        """Train to the recipe's last step.

        Args:
            resume: go on from the newest sound checkpoint.

        Raises:
            TrainingError: see `errors`; the last good checkpoint is kept.
            RecipeError: the recipe's data cannot be trained on, or is not that of the run to resume.
        """
        training = self.recipe.training
        saved = self._resumed() if resume else None
        if saved is None:
            self._lessons(0)
            assert self._round is not None
            network = self._student.create(self.recipe, self.target, self._round[1], self._folder)
            self.ranks.share([*network.parameters(), network.vocabulary])
        else:
            network = saved.network
            network.to(self.target.device)
        network.train()
        self.network = network
        parameters = [each for each in network.parameters() if each.requires_grad]
        betas = (training.betas[0], training.betas[1])
        optimizer = torch.optim.AdamW(
            parameters, lr=training.lr, betas=betas, weight_decay=training.weight_decay, fused=True
        )
        if saved is not None:
            optimizer.load_state_dict(saved.state["optimizer"])
        output_rows = self.target.output_rows(network.vocabulary)
        curve = Curve(self._checkpoints.folder, self._step) if self.ranks.rank == 0 else None
        first, began, before = self._step, time.monotonic(), self._seconds
        held_out: list[Lesson] | None = None
        sums = Figures()
        while self._step < training.steps:
            step = self._step
            lessons = self._lessons(step)
            factor = rate(step, training.steps, training.warmup, training.decay)
            for group in optimizer.param_groups:
                group["lr"] = training.lr * factor
            self._student.begin_step(network, step / max(1, training.steps - 1))
            torch.manual_seed(random.Random(f"{self.recipe.seed}/{step}/{self.ranks.rank}/step").getrandbits(40))
            optimizer.zero_grad(set_to_none=True)
            figures = self._student.learn(
                network, self.target, output_rows, lessons, self.recipe, self.ranks, self._precision()
            )
            norm = torch.nn.utils.clip_grad_norm_(parameters, training.clip).item()
            if not (math.isfinite(figures.loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"At step {step + 1} the loss is {figures.loss:g} and the gradient's norm {norm:g}; "
                    f"{self._checkpoints.left()}: lower training.lr or training.clip and start again from there."
                )
            optimizer.step()
            self._step = step + 1
            self._answer_tokens += figures.tokens
            self._seconds = before + time.monotonic() - began
            sums.add(figures, norm)
            self._tell((self._step - first) / (training.steps - first), f"step {self._step}, loss {figures.loss:.4f}")
            last = self._step == training.steps
            check = self.recipe.check.every and (self._step % self.recipe.check.every == 0 or last)
            found: dict[str, float] = {}
            if check and self.ranks.rank == 0:
                held_out = held_out or self._held_out()
                found = self._checked(network, held_out)
            if curve is not None and (self._step % training.log_every == 0 or check or last):
                row = sums.means() | {"step": self._step, "lr": training.lr * factor, **found}
                memory.give_back()
                self._logged(curve, row | {"answer_tokens": self._answer_tokens, "seconds": round(self._seconds, 1)})
                sums = Figures()
            if self._step % training.save_every == 0 or last:
                self._save(network, optimizer, curve)
        return Outcome(self._checkpoints.path(self._step), self._step, curve.rows if curve else [])

    def left(self) -> str:
        """What there is on the disk, for messages."""
        return self._checkpoints.left()

    def _resumed(self) -> Saved[N] | None:
        """The checkpoint to go on from."""
        if self.ranks.rank == 0:
            self._checkpoints.clean()
        saved, damaged = self._checkpoints.last(self._same_run)
        for sentence in damaged:
            self._say(sentence)
        if saved is None:
            return None
        if reason := saved.target.differs(self.target_id):
            raise RecipeError(f"The run's target was another one: {reason}; give the same.")
        self._step, self._seconds = saved.step, saved.state["seconds"]
        self._answer_tokens = saved.state["answer_tokens"]
        return saved

    def _same_run(self, state: Mapping[str, Any]) -> None:
        """Raise RecipeError if a checkpoint's state is of a run that trains otherwise."""
        changed = recipes.difference(state["recipe"], self.recipe.as_dict())
        if changed:
            raise RecipeError(
                f"The run in '{self._checkpoints.folder}' was made with another '{changed}'; restore that, or name "
                "another --out."
            )
        if (ranks := state["ranks"]) != self.ranks.count:
            raise RecipeError(f"The run had {ranks} processes, not {self.ranks.count}; resume it with as many.")
        digests = self.sources.digests()
        before = state.get("data", digests)  # which runs of older versions did not save
        other = next((name for name in {**digests, **before} if digests.get(name) != before.get(name)), None)
        if other is not None:
            raise RecipeError(
                f"The data '{other}' of the run in '{self._checkpoints.folder}' was {before.get(other)} and is "
                f"{digests.get(other)} now; restore it as it was, or name another --out."
            )

    def _lessons(self, step: int) -> list[Lesson]:
        """What a step learns from; a new round begins by making its lessons."""
        training = self.recipe.training
        each = training.pool * training.visits // training.batch
        number = step // each
        if self._round is None or self._round[0] != number:
            key = f"{self.recipe.seed}/round/{number}/{self.ranks.rank}"
            done = step / training.steps
            lessons = lesson_round.prepare(
                self.target,
                self.sources,
                self.recipe.answers,
                training.pool,
                key,
                longest=training.longest,
                tell=lambda share, doing: self._tell(done, f"round {number + 1}: {doing}, {share:.0%}"),
                say=self._say,
            )
            self._round = (number, lessons, lesson_round.order(lessons, self.recipe, key))
        _, pool, order = self._round
        return [pool[at] for at in order[step - number * each]]

    def _held_out(self) -> list[Lesson]:
        check = self.recipe.check
        answers = AnswersRecipe(
            own=1.0, sampled=0.0, longest=self.recipe.answers.longest, batch=self.recipe.answers.batch
        )
        return lesson_round.prepare(
            self.target,
            self.sources,
            answers,
            check.conversations,
            f"{self.recipe.seed}/check",
            split="test",
            longest=self.recipe.training.longest,
            say=self._say,
        )

    def _checked(self, network: N, held_out: Sequence[Lesson]) -> dict[str, float]:
        found = self._student.measure(network, self.target, held_out, self.recipe, self._precision())
        return {"chain": found.chain, "tree": found.tree, "held_out_agreement": found.agreement}

    def _logged(self, curve: Curve, row: dict[str, float]) -> None:
        try:
            curve.add(row)
        except OSError as error:
            raise self._full(error) from error

    def _save(self, network: N, optimizer: torch.optim.Optimizer, curve: Curve | None) -> None:
        trouble = None
        if self.ranks.rank == 0:
            state = {
                "optimizer": optimizer.state_dict(),
                "recipe": self.recipe.as_dict(),
                "data": self.sources.digests(),
                "ranks": self.ranks.count,
                "seconds": self._seconds,
                "answer_tokens": self._answer_tokens,
            }
            told = provenance.describe(
                self.recipe,
                self.sources.digests(),
                step=self._step,
                seconds=round(self._seconds, 1),
                answer_tokens=self._answer_tokens,
                processes=self.ranks.count,
                held_out=next((row for row in reversed(curve.rows if curve else []) if row.get("chain")), None),
            )
            try:
                self._checkpoints.save(self._step, network, self.target_id, state, told)
                if curve is not None:
                    curve.draw()
            except TrainingError as error:
                trouble = str(error)
            except OSError as error:
                trouble = str(self._full(error))
        if said := self.ranks.agree(trouble):
            raise TrainingError(said)

    def _full(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"The curve cannot be written ({error.strerror}); {self._checkpoints.left()}: make room, then go on with "
            "--resume."
        )

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=self.recipe.training.bf16)
