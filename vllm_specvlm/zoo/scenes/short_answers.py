"""Short-answer questions: easy-vqa's pictures and questions, in changing forms.

Its own train and test split is kept (every eighth training picture is for validation); the words around its questions
are split besides, since its questions are the same in both parts.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from vllm_specvlm.zoo.scenes.canvas import SIDE, Canvas, Split
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import capital

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")

# a form, and whether the answer is a sentence
_FORMS: tuple[tuple[str, bool], ...] = (
    ("{Q}", False),
    ("{Q} Answer with one word.", False),
    ("Short answer: {q}", False),
    ("Question: {q}", False),
    ("{Q} Answer with a sentence.", True),
    ("Please tell me: {q}", True),
    ("Look closely. {Q}", True),
    ("I have a question. {Q}", True),
    ("Reply briefly: {q}", False),
    ("Here is what I want to know: {q}", True),
)
_OF_SPLIT: dict[Split, tuple[tuple[str, bool], ...]] = {
    "train": _FORMS[:-4],
    "validation": _FORMS[-4:-2],
    "test": _FORMS[-2:],
}


def _sentence(question: str, answer: str) -> str:
    if answer == "yes":
        return "Yes, that is right."
    if answer == "no":
        return "No, that is not so."
    if answer in SHAPES:
        return f"The shape is a {answer}."
    return f"It is {answer}." if "shape" in question else f"The color is {answer}."


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """A picture of easy-vqa with up to six of its questions."""
    part = "test" if split == "test" else "train"
    table = sources.easy_vqa[part]
    while True:
        number = rng.randrange(len(table))
        if part == "test" or (number % 8 == 0) == (split == "validation"):
            break
    small = sources.easy_picture(part, number)
    canvas = Canvas(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    known = {answer for _, answer in table[number]}
    shape = next((word for word in SHAPES if word in known), "shape")
    colour = next((word for word in COLOURS if word in known), "")
    pixels = np.asarray(small, dtype=np.int16)
    inside = np.abs(pixels - pixels[0, 0]).max(2) > 20
    if inside.any():
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        scale = SIDE / small.width
        box = (columns[0] * scale, rows[0] * scale, (columns[-1] + 1) * scale, (rows[-1] + 1) * scale)
        canvas.mark(box, shape, colour)
    turns = []
    chosen = rng.sample(table[number], min(6, len(table[number])))
    for question, answer in chosen:
        form, full = rng.choice(_OF_SPLIT[split])
        asked = form.format(q=question, Q=capital(question))
        turns.append(Turn(asked, _sentence(question, answer) if full else capital(answer) + ".", (answer,)))
    return Sample("vqa", canvas.finish(rng), tuple(canvas.marks), tuple(turns))
