from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest

from vllm_specvlm.zoo.scenes import charting, short_answers, tasks, test_questions
from vllm_specvlm.zoo.scenes.canvas import COLOURS, SIDE, Split, split_of
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import TASKS, Sample, found

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


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
    train, validation, test = (set(short_answers._OF_SPLIT[split]) for split in SPLITS)
    assert not (train & validation or train & test or validation & test)
    assert train | validation | test == set(short_answers._FORMS)


def _angles(colours: Sequence[str], shares: Sequence[int]) -> frozenset[tuple[tuple[str, Fraction], ...]]:
    """What a pie looks like, wherever it starts."""
    slices = [(colour, Fraction(share, sum(shares))) for colour, share in zip(colours, shares, strict=True)]
    return frozenset((*slices[first:], *slices[:first]) for first in range(len(slices)))


def test_pies_that_look_alike_are_of_one_split() -> None:
    pies = [(pair, shares) for pair in permutations(COLOURS, 2) for shares in product(range(2, 11), repeat=2)]
    by_hash = {split: [p for p in pies if split_of(f"{list(p[0])} {list(p[1])}") == split] for split in SPLITS}
    drawn = {split: [pie for pie in pies if charting._is_of(split, *pie)] for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        looks = [{_angles(*pie) for pie in of} for of in (drawn[one], drawn[other], by_hash[one])]
        assert looks[0] and looks[1] and not looks[0] & looks[1]
        # Nor was one of the test split in what was trained on when each list was assigned by itself.
        assert not looks[2] & looks[1] and looks[2] & {_angles(*pie) for pie in by_hash[other]}


def test_the_pie_of_the_committed_test_set_is_drawn_by_that_rule(sources: Sources) -> None:
    drawn = charting.sample(sources, random.Random("test/chart/6"), "test")
    committed = [question for question in test_questions("chart") if question.id.startswith("chart/6/")]
    assert [question.turns[0] for question in committed] == list(drawn.turns) and "pie" in drawn.turns[0].question
    difference = np.asarray(committed[0].picture, float) - np.asarray(drawn.picture, float)
    assert np.abs(difference).mean() < 6  # of 255: it is kept as a JPEG, which does not keep its grain
    pies = {question.path for question in test_questions("chart") if "pie" in question.turns[0].question}
    assert pies == {committed[0].path}


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
