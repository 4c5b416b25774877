"""One question about a picture with a right answer, and a picture with its questions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from vllm_specvlm.zoo.scenes.canvas import Mark

TASKS = ("describe", "read", "chart", "count", "vqa", "dialogue")


@dataclass(frozen=True)
class Turn:
    """One question with a right answer; ``facts`` are strings that every right answer contains, whatever its wording.

    ``a|b`` in a fact means that either will do.
    """

    question: str
    answer: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A picture (RGB, SIDE x SIDE), what it shows where, and turns about it.

    The turns of a ``chain`` are one conversation; otherwise each is a question of its own.
    """

    task: str
    picture: Image.Image
    marks: tuple[Mark, ...]
    turns: tuple[Turn, ...]
    chain: bool = False


def found(facts: Iterable[str], answer: str) -> float:
    """Share of ``facts`` that occur in ``answer`` as whole words, whatever the case."""
    hits = [
        any(re.search(rf"(?<!\w){re.escape(way)}(?!\w)", answer, re.IGNORECASE) for way in fact.split("|"))
        for fact in facts
    ]
    return sum(hits) / len(hits) if hits else 1.0
