"""What data is: pictures and turns of question and answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: tuple[str | None, ...]
    """Stretches of text; None stands for the conversation's next picture."""
    answer: str | None
    """None: the data has none, the target must answer."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Some pictures, and one turn or more."""

    pictures: tuple[Image.Image | Path, ...]
    turns: tuple[Turn, ...]
    expected: int = 0
    """Characters that the data's answer to the last turn has, where the target is to give its own; 0: unknown."""
    system: str = ""
    """The system message; empty: none, or whatever the chat template has in its place."""
    recorded: bool = False
    """Whether it is anybody's, and not the recipe's author's: if it cannot be encoded, another is taken."""

    cut: bool = False
    """The last answer broke off: no end follows it."""

    @property
    def asks(self) -> bool:
        """Whether the target must answer the last turn."""
        return self.turns[-1].answer is None

    def asked(self, turn: int) -> Conversation:
        """The conversation up to `turn`, which the target is to answer."""
        turns = (*self.turns[:turn], replace(self.turns[turn], answer=None))
        shown = sum(part is None for each in turns for part in each.question)
        expected = len(self.turns[turn].answer or "")
        return replace(self, pictures=self.pictures[:shown], turns=turns, expected=expected, cut=False)


class Source(Protocol):
    """Where conversations come from. A new one is a class with these two methods, and an entry in `sources`."""

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """A random conversation, decided by `rng` alone; those of split `test` are never trained on."""
        ...

    def digest(self) -> str:
        """What it holds, in a few characters that change with it."""
        ...


def choose_asked(conversation: Conversation, rng: random.Random, own: float) -> Conversation:
    """Leave an answer to the target: where the data has none, else with probability `own`.

    Half of the time that is the first question, else any: most requests have one turn.
    """
    for turn, each in enumerate(conversation.turns):
        if each.answer is None:
            return conversation.asked(turn)
    if rng.random() >= own:
        return conversation
    return conversation.asked(0 if rng.random() < 0.5 else rng.randrange(len(conversation.turns)))
