from __future__ import annotations

import random
from itertools import product

import pytest

from vllm_specvlm.zoo.scenes import charting, short_answers, tasks
from vllm_specvlm.zoo.scenes.canvas import SIDE, split_of
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import TASKS, Sample, found


def draw(sources: Sources, task: str, split: str, count: int = 12) -> list[Sample]:
    return [tasks.sample(sources, random.Random(f"{task}/{i}"), split, task) for i in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_state_their_facts_and_marks_use_known_words(sources: Sources, task: str) -> None:
    for sample in draw(sources, task, "train"):
        assert sample.task == task and sample.picture.size == (SIDE, SIDE)
        assert sample.turns
        for turn in sample.turns:
            assert found(turn.facts, turn.answer) == 1.0, turn
            assert 1 <= len(turn.answer.split()) <= 110
        for mark in sample.marks:
            assert mark.main in tasks.MAIN_WORDS and mark.side in tasks.SIDE_WORDS, mark


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_a_sample(sources: Sources, task: str) -> None:
    first, second = draw(sources, task, "train", 2), draw(sources, task, "train", 2)
    assert [s.turns for s in first] == [s.turns for s in second]
    assert all(a.picture.tobytes() == b.picture.tobytes() for a, b in zip(first, second, strict=True))
    assert first[0].picture.tobytes() != first[1].picture.tobytes()


@pytest.mark.parametrize("task", ("describe", "read", "chart", "dialogue"))
def test_test_phrasings_are_not_trained_on(sources: Sources, task: str) -> None:
    trained = {turn.question for sample in draw(sources, task, "train", 60) for turn in sample.turns}
    tested = {turn.question for sample in draw(sources, task, "test", 20) for turn in sample.turns}
    assert not trained & tested
    again = {turn.question for sample in draw(sources, task, "train", 70)[60:] for turn in sample.turns}
    assert trained & again  # the check can fail: train draws do repeat phrasings


def test_phrasings_of_short_answers_are_of_one_split_each() -> None:
    train, validation, test = (set(short_answers._OF_SPLIT[split]) for split in charting._STRICTNESS)
    assert not (train & validation or train & test or validation & test)
    assert train | validation | test == set(short_answers._FORMS)


def test_a_pie_and_its_rotations_are_of_one_split() -> None:
    """The picture starts anywhere, so that they are one picture."""
    colours = ["red", "blue", "green"]
    pies = list(product(range(2, 9), repeat=3))
    of = {split: [pie for pie in pies if charting._is_of(split, colours, pie)] for split in charting._STRICTNESS}
    assert all(of.values())
    for learned in of["train"] + of["validation"]:
        for first in (1, 2):
            turned = colours[first:] + colours[:first], learned[first:] + learned[:first]
            assert not charting._is_of("test", *turned)
    # Those of the test split are as they were: the committed test set was drawn from them.
    assert of["test"] == [pie for pie in pies if split_of(f"{colours} {list(pie)}") == "test"]


def test_sprites_of_a_split_are_used_for_that_split_alone(sources: Sources) -> None:
    used: list[str] = []
    original = sources._image

    def watched(file: str) -> object:
        used.append(file)
        return original(file)

    sources._image = watched  # type: ignore[assignment, method-assign]
    try:
        for task in TASKS:
            draw(sources, task, "test", 3)
    finally:
        del sources._image
    assert used and all(file.endswith("_test.png") for file in used)
