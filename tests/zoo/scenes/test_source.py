"""The tasks as a source of conversations to train a head on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vllm_specvlm.train import scenes_source
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.recipe import DataRecipe
from vllm_specvlm.train.sources import Sources as Mixed
from vllm_specvlm.zoo.scenes import sources as zoo_sources
from vllm_specvlm.zoo.scenes.sources import Sources


def test_conversations_of_all_tasks(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_sources, "Sources", type(sources))
    made = scenes_source.ScenesSource(sources._work)
    drawn = [made.draw(random.Random(seed), "train") for seed in range(40)]
    again = made.draw(random.Random(3), "train")
    assert drawn[3].turns == again.turns and drawn[3].turns != drawn[4].turns
    assert {len(each.turns) for each in drawn} >= {1, 3}, "questions of their own, and dialogues"
    for each in drawn:
        assert len(each.pictures) == 1 and each.turns[0].question[0] is None
        assert all(None not in turn.question for turn in each.turns[1:]) and not each.asks


def test_splits_have_wordings_of_their_own(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo_sources, "Sources", type(sources))
    made = scenes_source.ScenesSource(sources._work)
    train, test = (
        {made.draw(random.Random(seed), split).turns[0].question for seed in range(150)} for split in ("train", "test")
    )
    assert len(train & test) < 0.2 * len(test)  # easy-vqa asks in the same few ways everywhere


def test_a_folder_without_pictures_is_named() -> None:
    with pytest.raises(RecipeError, match=r"specvlm/scenes needs its pictures, and '/nowhere' has none; run python -m"):
        Mixed([DataRecipe("specvlm/scenes", images="/nowhere")], Path())
