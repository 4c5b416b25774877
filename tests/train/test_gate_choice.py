"""That a gate learns to choose by what it is shown: whole runs of the trainer, on made lessons of two kinds.

The answers of one kind say what only the picture holds, those of the other what the target's features hold already.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.train.made import HIDDEN, TOKENS, TableTarget, head, marks
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import lesson_round
from vllm_specvlm.train.head_student import HeadStudent
from vllm_specvlm.train.lesson import Lesson, drafted_slots
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import CheckRecipe, DataRecipe, LossRecipe, Recipe, TrainingRecipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.trainer import Trainer

ToldBy = Literal["picture", "words"]
SPOKEN = marks("..PPPPPPPP..aaaaaaa")
PICTURE = (2, 8)
NEEDY_WORD, OTHER_WORD = 0, 1
ALL, NONE = 0, 1
BRANCHES = (CompressorConfig("none"), CompressorConfig("text"))


class GivenTarget(TableTarget):
    """What a trainer asks of a target besides."""

    special_tokens: frozenset[str] = frozenset()
    codes = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(8)) * 1.5

    def id(self, name: str) -> TargetId:
        return TargetId(name, "made", HIDDEN, 1, TOKENS, "0" * 64)


def made(target: GivenTarget, seed: int, told_by: ToldBy) -> tuple[Lesson, bool]:
    """A lesson, and whether it needs its picture. Four codes say what is answered; the fifth says nothing."""
    generator = torch.Generator().manual_seed(seed)
    needy = bool(torch.randint(2, (), generator=generator))
    shown, felt = torch.randint(4, (2,), generator=generator).tolist()
    answered = shown if needy else felt

    def noise(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, HIDDEN, generator=generator)

    ids = torch.randint(2, TOKENS, (len(SPOKEN),), generator=generator)
    visual = target.codes[shown] + noise(PICTURE[1])
    if told_by == "words":
        ids[:2] = NEEDY_WORD if needy else OTHER_WORD
    else:
        visual[:, 0] = 3.0 if needy else -3.0
    drafted, depths = drafted_slots(torch.tensor(SPOKEN))
    text = torch.ones(int(drafted[-1]) + 1, dtype=torch.bool)
    text[PICTURE[0] : sum(PICTURE)] = False
    slots = text.nonzero().flatten()
    final = target.codes[answered] + noise(len(drafted))
    logits = final @ target.output.T
    lesson = Lesson(
        ids=ids,
        pictures=[PICTURE],
        visual=[visual],
        slots=slots,
        features=target.codes[4 if needy else felt] + noise(len(slots)),
        drafted=torch.searchsorted(slots, drafted),
        depths=depths,
        final=final,
        normaliser=logits.logsumexp(-1),
        best=logits.argmax(-1),
    )
    return lesson, needy


class GatedStudent(HeadStudent):
    """A head whose gate chooses between all of the picture and nothing of it."""

    def create(self, recipe: Recipe, target: Any, lessons: Sequence[Lesson], folder: Path) -> FeatureHead:
        return head(
            "select", seed=recipe.seed, compressor=CompressorConfig("select", branches=BRANCHES, gate_hidden=16)
        )


def chosen(
    monkeypatch: pytest.MonkeyPatch, out: Path, told_by: ToldBy, seed: int = 1, steps: int = 600, **losses: float
) -> dict[bool, list[int]]:
    """What the trained checkpoint's gate serves held-out pictures with, by whether they are needed."""
    target = GivenTarget()

    def prepare(_: Any, sources: Any, answers: Any, count: int, key: str, **rest: Any) -> list[Lesson]:
        rng = random.Random(key)
        return [made(target, rng.getrandbits(40), told_by)[0] for _ in range(count)]

    monkeypatch.setattr(lesson_round, "prepare", prepare)
    recipe = Recipe(
        "made",
        (DataRecipe("specvlm/reference"),),
        seed=seed,
        losses=LossRecipe(**({"ce": 1.0, "smooth_l1": 0.1} | losses)),
        training=TrainingRecipe(
            steps=steps, batch=16, lr=3e-3, warmup=20, unroll=2, bf16=False, pool=64, visits=2, save_every=steps
        ),
        check=CheckRecipe(every=0),
    )
    sources = Sources(recipe.data, Path())
    trainer = Trainer(GatedStudent(), recipe, target, sources, out, Ranks(), say=lambda text: None)  # type: ignore[arg-type]
    served, _ = head_checkpoint.load(trainer.run().folder)
    choices: dict[bool, list[int]] = {True: [], False: []}
    for at in range(64):
        lesson, needy = made(target, 10_000 + at, told_by)
        with torch.no_grad():
            found = served.eval().compressor(lesson.visual[0], target.embed(lesson.ids[: PICTURE[0]]).mean(0))
        assert found.choice is not None
        choices[needy].append(found.choice)
    return choices


@pytest.mark.parametrize("told_by", ["picture", "words"])
def test_each_kind_is_sent_to_the_branch_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_by: ToldBy
) -> None:
    choices = chosen(monkeypatch, tmp_path, told_by)
    assert min(len(choices[True]), len(choices[False])) > 20
    assert choices[True].count(ALL) > 0.95 * len(choices[True])
    assert choices[False].count(NONE) > 0.95 * len(choices[False])


@pytest.mark.parametrize("losses", [{"gate_score": 0.0}, {"gate_cost": 10.0}], ids=["not told", "dear"])
def test_a_gate_that_is_not_told_or_must_save_sends_all_one_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, losses: dict[str, float]
) -> None:
    """Else the test above would show nothing of the score function or of what is weighed against the cost."""
    choices = chosen(monkeypatch, tmp_path, "picture", **losses)
    assert {*choices[True], *choices[False]} == {NONE}
