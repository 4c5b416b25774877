from __future__ import annotations

import random

from PIL import ImageFont

from vllm_specvlm.zoo.scenes.canvas import SIDE, Canvas, Mark, labels, split_of, wording
from vllm_specvlm.zoo.scenes.turn import found


def test_patches_show_the_last_mark_that_covers_them() -> None:
    marks = [Mark((0, 0, SIDE, SIDE), "sky"), Mark((0, 0, SIDE / 2, SIDE / 2), "cat", "two")]
    shown = labels(marks, 4)
    names = [mark.main if mark else None for mark in shown]
    assert names == ["cat", "cat", "sky", "sky"] * 2 + ["sky"] * 8
    assert labels([Mark((0, 0, 10, 10), "cat")], 12)[0] is None  # an eighth of the patch is not enough


def test_every_word_and_every_digit_gets_a_mark() -> None:
    canvas = Canvas.plain((255, 255, 255))
    font = ImageFont.load_default(40)
    assert isinstance(font, ImageFont.FreeTypeFont)
    canvas.write(SIDE / 2, 60, "Room 12", font, (0, 0, 0))
    assert [mark.main for mark in canvas.marks] == ["room", "1", "2"]
    room, one, two = (mark.box for mark in canvas.marks)
    assert room[2] < one[0] + 1 and one[2] <= two[0] + 1e-6
    assert two[2] - two[0] >= 28  # a visual token of its own in the coarser setting


def test_forms_are_split_three_ways() -> None:
    forms = ("a", "b", "c", "d", "e")
    rng = random.Random(0)
    assert {wording(rng, "train", forms) for _ in range(60)} == {"a", "b", "c"}
    assert wording(rng, "validation", forms) == "d" and wording(rng, "test", forms) == "e"


def test_splits_by_contents_are_stable_and_of_the_right_size() -> None:
    splits = [split_of(f"contents {i}") for i in range(800)]
    assert 60 < splits.count("test") < 140 and 60 < splits.count("validation") < 140
    assert split_of("contents 5") == splits[5]


def test_facts_are_whole_words_with_alternatives() -> None:
    assert found(("cat", "yes|true"), "True: the cat sits.") == 1.0
    assert found(("cat",), "Cats sleep.") == 0.0
    assert found(("cat", "dog"), "A cat.") == 0.5
    assert found(("1",), "It is 12 dollars.") == 0.0
