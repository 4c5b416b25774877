"""Pictures with questions, for benchmarks, tests and demonstrations."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from vllm_specvlm.zoo.pictures import Split

SAMPLE_SEED = "sample/188"  # a test scene with five different shapes
_SAMPLE_QUESTION = "Please describe this picture in detail."


@dataclass(frozen=True)
class Prompt:
    """A picture (RGB, 192 x 192), a question about it, its right answer, and the kind of question.

    ``facts`` are strings that every right answer contains, whatever its wording.
    """

    picture: Image
    question: str
    answer: str
    kind: str
    facts: tuple[str, ...] = ()


def prompts(count: int, seed: int, split: Split = "test") -> list[Prompt]:
    """``count`` prompts with the kinds of question mixed; the same for the same ``seed``.

    With ``split="test"`` neither the scenes nor the wordings of the questions occur in training.
    """
    from vllm_specvlm.zoo.pictures import draw, sample_scene
    from vllm_specvlm.zoo.questions import ask

    made = []
    for index in range(count):
        rng = random.Random(f"prompts/{split}/{seed}/{index}")
        scene = sample_scene(rng, split)
        turn = ask(scene, rng, split)
        made.append(Prompt(draw(scene, rng), turn.question, turn.answer, turn.kind, turn.facts))
    return made


def sample_picture() -> Path:
    """A picture that ships with the package (PNG), of a scene that was never trained on. ``export`` draws it."""
    return Path(__file__).parent / "assets" / "sample.png"


def sample_question() -> str:
    """A question about :func:`sample_picture`, in words never trained on; the answer has some forty words."""
    return _SAMPLE_QUESTION
