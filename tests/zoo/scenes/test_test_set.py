from __future__ import annotations

from pathlib import Path

import pytest

from vllm_specvlm.zoo.scenes import TestQuestion, test_questions
from vllm_specvlm.zoo.scenes.canvas import SIDE
from vllm_specvlm.zoo.scenes.turn import TASKS, found

ASSETS = Path(__file__).parents[3] / "vllm_specvlm" / "zoo" / "scenes" / "assets"


def questions() -> list[TestQuestion]:
    return test_questions()


def test_every_task_has_ten_pictures_with_questions() -> None:
    for task in TASKS:
        some = test_questions(task)
        assert {question.task for question in some} == {task}
        assert len({question.path for question in some}) == 10
    assert len({question.id for question in questions()}) == len(questions())
    assert len(questions()) == sum(len(test_questions(task)) for task in TASKS)


def test_pictures_are_there_and_small() -> None:
    paths = {question.path for question in questions()}
    assert sum(path.stat().st_size for path in paths) < 1.5e6
    assert {path.name for path in paths} == {path.name for path in ASSETS.glob("*.jpg")}
    assert questions()[0].picture.size == (SIDE, SIDE)


def test_right_answers_state_their_facts() -> None:
    for question in questions():
        assert len(question.turns) == 1 or question.task == "dialogue"
        for turn in question.turns:
            assert found(turn.facts, turn.answer) == 1.0, turn
            assert found(turn.facts, "I do not know.") < 1.0


def test_messages_hold_the_picture_once_and_answers_in_between() -> None:
    question = next(question for question in test_questions("dialogue") if len(question.turns) > 1)
    messages = question.messages(("An answer.",))
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    kinds = [part["type"] for message in messages for part in message["content"]]
    assert kinds == ["image", "text", "text", "text"]
    assert [part["type"] for part in question.messages(image=False)[0]["content"]] == ["text"]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="no task 'sing'"):
        test_questions("sing")
