"""Answers follow from the scene and the wording of the question; wordings are many, and some are held out."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from vllm_specvlm import zoo
from vllm_specvlm.zoo import describe
from vllm_specvlm.zoo.evaluate import found, verification_cycles
from vllm_specvlm.zoo.pictures import Item, Scene, sample_scene
from vllm_specvlm.zoo.questions import KINDS, Turn, ask
from vllm_specvlm.zoo.wording import NUMBERS, PLACE_NAMES, listing

SCENE = Scene(
    (
        Item("large", "red", "star", 0),
        Item("small", "blue", "ring", 2),
        Item("small", "red", "ring", 7),
    ),
    "free",
)


def _turns(kind: str, split: str = "train", count: int = 200) -> list[tuple[Scene, Turn]]:
    rng = random.Random(kind + split)
    turns = []
    while len(turns) < count:
        scene = sample_scene(rng, split)  # type: ignore[arg-type]
        try:
            turns.append((scene, ask(scene, rng, split, kind)))  # type: ignore[arg-type]
        except ValueError:  # a kind that this scene does not allow
            continue
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_contains_its_facts(kind: str) -> None:
    for _, turn in _turns(kind):
        assert turn.kind == kind
        assert turn.facts
        assert found(turn.facts, turn.answer) == 1.0, turn


def test_wording_and_scene_fix_the_answer() -> None:
    """The same question about the same scene has one answer, whichever random numbers led to it."""
    for seed in range(4):
        scene = sample_scene(random.Random(seed), "train")
        answers: dict[str, str] = {}
        for draw_seed in range(300):
            turn = ask(scene, random.Random(draw_seed), "train")
            assert answers.setdefault(turn.question, turn.answer) == turn.answer, turn.question


def test_named_places_hold_what_the_answer_says() -> None:
    for scene, turn in _turns("where"):
        asked = re.search(r"the (\w+) (\w+)(?:,| in|\?|\.)", turn.question.split(". ")[-1].split(": ")[-1])
        assert asked is not None
        item = next(item for item in scene.items if f"{item.colour} {item.shape}" in turn.question)
        assert PLACE_NAMES[0][item.place] in turn.answer


def test_counts_are_right() -> None:
    for scene, turn in _turns("count"):
        number = next(word for word in re.findall(r"\w+", turn.answer) if word in (*NUMBERS, "zero"))
        words = turn.question.lower()
        chosen = [
            item
            for item in scene.items
            if all(
                value in (item.size, item.colour, item.shape)
                for value in re.findall(r"\b(?:small|large|red|blue|green|yellow|purple|orange|black|white)\b", words)
            )
        ]
        shape = re.search(r"\b(circle|square|triangle|diamond|star|cross|ring|heart)(?:es|s)?\b", words)
        if shape:
            chosen = [item for item in chosen if item.shape == shape[1]]
        assert number in (NUMBERS[len(chosen)], "zero" if not chosen else ""), (scene, turn)


def test_comparisons_are_right() -> None:
    for scene, turn in _turns("compare"):
        names = re.findall(r"the (\w+ (?:circle|square|triangle|diamond|star|cross|ring|heart))\b", turn.question)
        first, second = (next(i for i in scene.items if f"{i.colour} {i.shape}" == name) for name in names)
        answer = turn.answer.lower()
        if "above" in answer and "no" not in turn.facts:
            assert first.row < second.row
        if "left of" in answer and "yes" in turn.facts:
            assert first.column < second.column
        if "larger than the " + names[1] in answer:
            assert (first.size, second.size) == ("large", "small")


def test_existence_is_right() -> None:
    for scene, turn in _turns("exist"):
        thing = re.search(r"\b(\w+) (circle|square|triangle|diamond|star|cross|ring|heart)\b", turn.question)
        assert thing is not None
        present = any((item.colour, item.shape) == thing.groups() for item in scene.items)
        assert ("yes" in turn.facts) == present


def test_a_description_names_everything_in_the_order_asked_for() -> None:
    choice = (0, 0, 0, 1, 1)
    assert describe.question(choice) == "Describe the picture in detail from bottom to top."
    assert describe.answer(choice, SCENE) == (
        "The picture shows three shapes. In the bottom middle there is a small red ring. In the top right there is a "
        "small blue ring. In the top left there is a large red star."
    )


def test_wordings_are_many_and_held_out_by_split() -> None:
    train = [turn for kind in KINDS for _, turn in _turns(kind)]
    test = [turn for kind in KINDS for _, turn in _turns(kind, "test")]
    assert len({turn.question for turn in train}) > 0.7 * len(train)
    assert len({turn.answer for turn in train}) > 0.7 * len(train)

    def skeleton(text: str) -> str:
        text = re.sub(r"\b(red|blue|green|yellow|purple|orange|black|white)\b", "C", text)
        text = re.sub(r"\b(circle|square|triangle|diamond|star|cross|ring|heart)(es|s)?\b", "S", text)
        return re.sub(r"\b(no|one|two|three|four|five|six|small|large|both)\b", "N", text)

    openings = Counter(" ".join(skeleton(turn.answer).split()[:4]) for turn in train)
    assert len(openings) > 150  # ways to begin an answer, contents apart
    described = {turn.question for turn in train if turn.kind == "describe"}
    assert not described & {turn.question for turn in test if turn.kind == "describe"}


def test_describing_questions_number_in_the_thousands() -> None:
    total = 1
    for count in describe.CHOICES:
        total *= count
    assert total > 2500


def test_prompts_are_repeatable_and_mixed() -> None:
    first, again = zoo.prompts(60, seed=3), zoo.prompts(60, seed=3)
    assert [(p.question, p.answer) for p in first] == [(p.question, p.answer) for p in again]
    assert first[0].picture.tobytes() == again[0].picture.tobytes()
    assert {prompt.kind for prompt in first} == set(KINDS)
    assert zoo.prompts(5, seed=4)[0].question != first[0].question
    assert zoo.prompts(3, seed=3) != zoo.prompts(3, seed=3, split="train")


def test_listing() -> None:
    assert [listing(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        ([True], (0, 0)),  # the prefill alone
        ([True, False, False], (2, 2)),  # nothing accepted: one token a cycle
        ([True] * 11, (10, 2)),  # four accepted and one bonus, twice
        ([False, True, True, False, True], (4, 2)),
    ],
)
def test_verification_cycles(matches: list[bool], expected: tuple[int, int]) -> None:
    assert verification_cycles(matches) == expected
