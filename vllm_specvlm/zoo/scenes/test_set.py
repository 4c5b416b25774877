"""The committed test set: pictures and conversations that benchmarks and the evaluation use.

``assets/test.jsonl`` has one picture a line: ``id``, ``task``, ``picture`` (a file beside it), and ``turns``, each with
``question``, ``answer`` (a right one) and ``facts`` (what every right answer says). The turns of ``chain`` are one
conversation; otherwise each is a question of its own. ``python -m vllm_specvlm.zoo.scenes.export`` draws it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.zoo.scenes.turn import TASKS, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class TestQuestion:
    """A picture with one question, or one conversation, about it.

    Attributes
    ----------
    id:
        "read/3/1": task, picture, question.
    path:
        The picture's file.
    turns:
        One turn; several for the task "dialogue", to be asked in order.
    """

    __test__ = False  # not for pytest

    id: str
    task: str
    path: Path
    turns: tuple[Turn, ...]

    @property
    def picture(self) -> Image:
        """The picture, RGB."""
        from PIL import Image

        return Image.open(self.path).convert("RGB")

    def messages(self, answers: tuple[str, ...] = (), *, image: bool = True) -> list[dict[str, Any]]:
        """Chat messages up to the question after ``answers`` (those given so far), without the picture itself: its
        place is a part ``{"type": "image"}`` of the first message, unless ``image`` is False.
        """
        messages: list[dict[str, Any]] = []
        for index in range(len(answers) + 1):
            content: list[dict[str, Any]] = [{"type": "image"}] if image and not index else []
            content.append({"type": "text", "text": self.turns[index].question})
            messages.append({"role": "user", "content": content})
            if index < len(answers):
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[index]}]})
        return messages


@cache
def _all() -> tuple[TestQuestion, ...]:
    made = []
    for line in (ASSETS / "test.jsonl").read_text().splitlines():
        entry = json.loads(line)
        turns = [Turn(turn["question"], turn["answer"], tuple(turn["facts"])) for turn in entry["turns"]]
        groups = [tuple(turns)] if entry["chain"] else [(turn,) for turn in turns]
        for number, group in enumerate(groups):
            path = ASSETS / entry["picture"]
            made.append(TestQuestion(f"{entry['id']}/{number}", entry["task"], path, group))
    return tuple(made)


def test_questions(task: str | None = None) -> list[TestQuestion]:
    """All test questions, or those of one task ("describe", "read", "chart", "count", "vqa", "dialogue")."""
    if task is not None and task not in TASKS:
        raise ValueError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    return [question for question in _all() if task in (None, question.task)]


test_questions.__test__ = False  # type: ignore[attr-defined]  # not for pytest
