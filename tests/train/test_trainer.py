"""Whole runs with a tiny target: resuming, stopping, and that something is learned."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.train.test_checkpoints import fill_disk
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train import learning, lesson_round
from vllm_specvlm.train.errors import RecipeError, TrainingError
from vllm_specvlm.train.head_student import HeadStudent
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import (
    AnswersRecipe,
    CheckRecipe,
    DataRecipe,
    HeadRecipe,
    LossRecipe,
    Recipe,
    TrainingRecipe,
)
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.trainer import Trainer

SMALL = Recipe(
    target="tiny",
    data=(DataRecipe("specvlm/reference"), DataRecipe("specvlm/reference-talk", 0.5)),
    answers=AnswersRecipe(own=0.5, sampled=0.5, longest=12, batch=4),
    head=HeadRecipe(vocabulary=96),
    losses=LossRecipe(ce=1.0, smooth_l1=0.1),
    training=TrainingRecipe(
        steps=6, batch=2, pool=4, visits=2, unroll=3, bf16=False, warmup=2, save_every=3, log_every=1, longest=512
    ),
    check=CheckRecipe(every=3, conversations=3, chain=3),
)


@cache
def tiny() -> Target:
    return Target(str(build("llava")), torch.float32, torch.device("cpu"))


def make(out: Path, recipe: Recipe = SMALL, **hears: Any) -> Trainer[FeatureHead]:
    hears.setdefault("say", lambda text: None)
    return Trainer(HeadStudent(), recipe, tiny(), Sources(recipe.data, Path()), out, Ranks(), **hears)


def weights(trainer: Trainer[FeatureHead]) -> dict[str, torch.Tensor]:
    assert trainer.network is not None
    return trainer.network.state_dict()


def rows(out: Path) -> list[str]:
    """The curve without its clock."""
    lines = [line.split(",") for line in (out / "curve.csv").read_text().splitlines()]
    clock = lines[0].index("seconds")
    return [",".join(line[:clock] + line[clock + 1 :]) for line in lines]


def changed(**values: Any) -> Recipe:
    return dataclasses.replace(SMALL, training=dataclasses.replace(SMALL.training, **values))


def interrupt_at(step: int) -> Any:
    def tell(share: float, doing: str) -> None:
        if doing.startswith(f"step {step},"):
            raise KeyboardInterrupt

    return tell


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("stopped", [3, 5])
@pytest.mark.parametrize("compressor", ["pool", "select"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path, stopped: int, compressor: str) -> None:
    """After step 3 a new round has begun, whose lessons the resumed run must make again; step 5 lies in its middle."""
    from vllm_specvlm.compress.compressor import CompressorConfig

    recipe = dataclasses.replace(SMALL, head=HeadRecipe(vocabulary=96, compressor=CompressorConfig(compressor)))
    whole = make(tmp_path / "whole", recipe)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "parts", recipe, tell=interrupt_at(stopped)).run()
    assert [path.name for path in (tmp_path / "parts").glob("step-*")] == (["step-000003"] if stopped > 3 else [])
    parts = make(tmp_path / "parts", recipe)
    parts.run(resume=True)
    assert all(torch.equal(weights(parts)[name], value) for name, value in weights(whole).items())
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole") and len(rows(tmp_path / "whole")) == 7
    assert (tmp_path / "whole" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    """Else the equality above would show nothing."""
    ends = []
    for seed in (0, 1):
        run = make(tmp_path, dataclasses.replace(SMALL, seed=seed, training=changed(steps=1, save_every=9).training))
        run.run()
        ends.append(weights(run)["fuse.weight"])
        for path in tmp_path.glob("step-*"):
            path.rename(tmp_path / f"old-{seed}")
    assert not torch.equal(*ends)


def test_what_a_checkpoint_says(tmp_path: Path) -> None:
    import json

    from vllm_specvlm.draft import head_checkpoint, target_id

    outcome = make(tmp_path).run()
    head, target = head_checkpoint.load(outcome.folder)
    assert target.differs(target_id.of_folder(build("llava"))) is None and target.digest
    assert set(tiny().end_ids) <= set(head.vocabulary.tolist())
    told = json.loads((outcome.folder / "provenance.json").read_text())
    assert told["step"] == 6 and told["recipe"]["training"]["steps"] == 6 and told["data"]["specvlm/reference"]
    assert "/" not in json.dumps(told).replace("specvlm/", "")
    assert float(outcome.rows[-1]["chain"]) >= 1.0


def test_nan_stops_and_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, calls = learning.learn, []

    def broken(head: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            with torch.no_grad():
                head.fuse.weight[0, 0] = float("nan")
        return learn(head, *rest)

    monkeypatch.setattr(learning, "learn", broken)
    with pytest.raises(TrainingError, match=r"At step 5 the loss is nan .* the last good one is step-000003"):
        make(tmp_path).run()
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000003"]
    monkeypatch.setattr(learning, "learn", learn)
    make(tmp_path).run(resume=True)


def test_a_full_disk_stops_and_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, tell=lambda share, doing: fill_disk(monkeypatch) if doing.startswith("step 4") else None)
    with pytest.raises(TrainingError, match=r"step 6 cannot be written .No space left on device.; the last good one"):
        run.run()
    assert [path.name for path in tmp_path.glob("*step-*")] == ["step-000003"]


def test_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    make(tmp_path).run()
    with pytest.raises(RecipeError, match=r"another 'training\.lr'"):
        make(tmp_path, changed(lr=1.0)).run(resume=True)
    longer = make(tmp_path, changed(steps=8))
    assert longer.run(resume=True).step == 8


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that grew, say: the rounds that are to come would not be those of the run."""
    make(tmp_path, changed(steps=1, save_every=1)).run()
    monkeypatch.setattr(Sources, "digests", lambda self: {"specvlm/reference": "version 99"})
    with pytest.raises(RecipeError, match=r"data 'specvlm/reference' of the run in .* is version 99 now; restore it"):
        make(tmp_path, changed(steps=2)).run(resume=True)


def test_damage_is_said(tmp_path: Path) -> None:
    make(tmp_path).run()
    path = tmp_path / "step-000006" / "training.pt"
    path.write_bytes(path.read_bytes()[:50])
    heard: list[str] = []
    make(tmp_path, say=heard.append).run(resume=True)
    assert len(heard) == 1 and "step-000006 is damaged" in heard[0]


def learned(out: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool) -> tuple[float, float]:
    """Divergence from the target at first and at last."""
    recipe = dataclasses.replace(
        changed(steps=40, batch=8, pool=32, visits=10, lr=3e-3, save_every=40, unroll=1),
        data=(DataRecipe("specvlm/reference-talk"),),
        head=HeadRecipe(vocabulary=512),
        losses=LossRecipe(ce=0.0, smooth_l1=0.1, kl=1.0),
        check=CheckRecipe(every=0),
        answers=dataclasses.replace(SMALL.answers, longest=24, batch=32),
    )
    read = Trainer._lessons

    def mixed(self: Trainer[FeatureHead], step: int) -> list[Lesson]:
        lessons = read(self, step)
        if not shuffled:
            return lessons
        generator = torch.Generator().manual_seed(step)
        return [
            dataclasses.replace(each, features=each.features[torch.randperm(len(each.features), generator=generator)])
            for each in lessons
        ]

    monkeypatch.setattr(Trainer, "_lessons", mixed)
    out.mkdir()
    losses = [float(row["kl"]) for row in make(out, recipe).run().rows]
    monkeypatch.setattr(Trainer, "_lessons", read)
    return losses[0], sum(losses[-5:]) / 5


def test_it_learns_and_less_from_shuffled_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = learned(tmp_path / "right", monkeypatch, shuffled=False)
    _, blind = learned(tmp_path / "shuffled", monkeypatch, shuffled=True)
    assert last < 0.7 * first
    assert last < 0.8 * blind


@pytest.mark.parametrize("always", [False, True])
def test_every_lesson_has_something_to_draft(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are drawn for answers of one token, so no process and no part of a batch is without a gradient."""
    target, made, short = tiny(), 0, 0
    for name in ("read", "answer"):
        stock = getattr(target, name)

        def cut(*given: Any, stock: Any = stock) -> list[Lesson]:
            nonlocal made, short
            lessons: list[Lesson] = stock(*given)
            for lesson in lessons:
                made += 1
                if always or made % 2:
                    lesson.drafted, short = lesson.drafted[:0], short + 1
            return lessons

        monkeypatch.setattr(target, name, cut)
    answers = AnswersRecipe(own=0.5, sampled=0.0, longest=4, batch=4)
    sources = Sources(SMALL.data, Path())
    if always:
        with pytest.raises(RecipeError, match="2 of 2 conversations have an answer of fewer than two tokens"):
            lesson_round.prepare(target, sources, answers, 2, "key")
        return
    lessons = lesson_round.prepare(target, sources, answers, 8, "key")
    assert short > 3 and len(lessons) == 8 and all(lesson.tokens for lesson in lessons)
