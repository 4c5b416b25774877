"""Training an early exit: what it learns from is what drafts in serving, and it learns."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.train.test_trainer import SMALL
from vllm_specvlm.draft import exit_checkpoint, target_id
from vllm_specvlm.draft.early_exit import EarlyExit
from vllm_specvlm.train import lesson_round
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.exit_student import ExitStudent
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import AnswersRecipe, ExitRecipe, HeadRecipe, LossRecipe, Recipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.trainer import Trainer

LAYERS = 1
EXIT = dataclasses.replace(
    SMALL,
    head=HeadRecipe(),
    exit=ExitRecipe(layers=LAYERS, blocks=1, vocabulary=96),
    losses=LossRecipe(ce=1.0, smooth_l1=0.0, cosine=0.5),
)


@cache
def target() -> Target:
    return Target(str(build("llava")), torch.float32, torch.device("cpu"), (LAYERS,), ahead=1)


def make(out: Path, recipe: Recipe = EXIT, **hears: Any) -> Trainer[EarlyExit]:
    hears.setdefault("say", lambda text: None)
    return Trainer(ExitStudent(), recipe, target(), Sources(recipe.data, Path()), out, Ranks(), **hears)


def lessons(own: float, count: int = 4) -> list[Lesson]:
    answers = AnswersRecipe(own=own, sampled=0.0, longest=12, batch=4)
    return lesson_round.prepare(target(), Sources(EXIT.data, Path()), answers, count, "key")


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_states_are_those_of_the_token_that_drafts(own: float) -> None:
    """Slot p predicts token p + 2 from token p + 1, whose own state the first layers have computed."""
    network = target()
    for lesson in lessons(own):
        if lesson.pictures:
            continue
        with torch.inference_mode():
            hidden = network.model.model(input_ids=lesson.ids[None], output_hidden_states=True)
        at = lesson.slots[lesson.drafted] + 1
        torch.testing.assert_close(
            lesson.features[lesson.drafted], hidden.hidden_states[LAYERS][0][at], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(lesson.final, hidden.last_hidden_state[0][at], atol=1e-4, rtol=1e-4)


def test_a_run_learns_and_its_checkpoint_serves(tmp_path: Path) -> None:
    training = dataclasses.replace(EXIT.training, steps=40, save_every=40, lr=3e-3, pool=8, visits=10)
    run = make(tmp_path, dataclasses.replace(EXIT, training=training))
    outcome = run.run()
    losses = [float(row["loss"]) for row in outcome.rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    network, made_for = exit_checkpoint.load(outcome.folder)
    assert network.config.layers == LAYERS and network.config.vocabulary == 96
    assert made_for.differs(target_id.of_folder(build("llava"))) is None
    told = json.loads((outcome.folder / "provenance.json").read_text())
    assert told["recipe"]["exit"]["layers"] == LAYERS and float(outcome.rows[-1]["chain"]) >= 1.0


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    def tell(share: float, doing: str) -> None:
        if doing.startswith("step 5,"):
            raise KeyboardInterrupt

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = make(tmp_path / "whole")
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", tell=tell).run()
    parts = make(tmp_path / "parts")
    parts.run(resume=True)
    assert whole.network is not None and parts.network is not None
    ended = parts.network.state_dict()
    assert all(torch.equal(ended[name], value) for name, value in whole.network.state_dict().items())


def test_parts_of_a_batch_add_up() -> None:
    some, student = lessons(0.5), ExitStudent()
    gradients = []
    for accumulate in (1, 2):
        recipe = dataclasses.replace(EXIT, training=dataclasses.replace(EXIT.training, batch=4, accumulate=accumulate))
        network = student.create(recipe, target(), some, Path())
        rows = target().output_rows(network.vocabulary)
        student.learn(network, target(), rows, some, recipe, Ranks(), torch.autocast("cpu", enabled=False))
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


def test_acceptance_counts_what_a_perfect_and_a_useless_exit_would_get() -> None:
    student, some = ExitStudent(), lessons(1.0)
    network = student.create(EXIT, target(), some, Path())
    right = student.measure(_Knows(network, some, True), target(), some, EXIT, torch.autocast("cpu", enabled=False))  # type: ignore[arg-type]
    wrong = student.measure(_Knows(network, some, False), target(), some, EXIT, torch.autocast("cpu", enabled=False))  # type: ignore[arg-type]
    assert wrong.chain == wrong.agreement + 1.0 == 1.0
    tokens = sum(lesson.tokens for lesson in some)
    assert right.agreement == 1.0 and right.chain == pytest.approx(
        tokens / sum(-(-lesson.tokens // (EXIT.check.chain + 1)) for lesson in some)
    )


class _Knows:
    """Says the next tokens of lessons as asked for one by one, or never says them."""

    def __init__(self, network: EarlyExit, lessons: list[Lesson], right: bool) -> None:
        self.vocabulary = torch.arange(512)
        self.lessons, self.right = iter(lessons), right

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        lesson = next(self.lessons)
        wanted = lesson.ids[lesson.slots[lesson.drafted] + 2]
        scores = torch.zeros(len(wanted), 512)
        return scores.scatter(1, wanted[:, None], 1.0 if self.right else -1.0)


def test_exits_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[exit\] layers is 2, and the target has 2; write fewer"):
        ExitStudent().create(dataclasses.replace(EXIT, exit=ExitRecipe(layers=2)), target(), lessons(0.0, 1), tmp_path)
    with pytest.raises(ValueError, match="a run trains one of them"):
        dataclasses.replace(EXIT, head=HeadRecipe(vocabulary=96))
    with pytest.raises(ValueError, match="'layers' is 0"):
        ExitRecipe(layers=0)


def test_a_run_of_a_head_is_not_resumed_as_one_of_an_exit(tmp_path: Path) -> None:
    from tests.train.test_trainer import make as make_head

    make_head(tmp_path).run()
    there = sorted(path.name for path in tmp_path.glob("step-*"))
    with pytest.raises(RecipeError, match="was made with another"):
        make(tmp_path).run(resume=True)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == there
