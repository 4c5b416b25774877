"""Prompts for the tiny checkpoints, with generated pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.tiny.families import FAMILIES

_TALE = "tell the tale of the red tree and the blue tree; "


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt: its text with one placeholder per picture, and the pictures."""

    name: str
    text: str
    images: tuple[Image.Image, ...] = ()

    def request(self) -> dict[str, Any]:
        """The prompt as vLLM's `LLM.generate` takes it."""
        images = {"multi_modal_data": {"image": list(self.images)}} if self.images else {}
        return {"prompt": self.text, **images}

    def follow_up(self, answer: str, question: str) -> Prompt:
        """The next turn of the conversation: this prompt, the answer it got, and a question."""
        return Prompt(f"{self.name}, next", f"{self.text}{answer}\nUSER: {question}\nASSISTANT:", self.images)


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    """A smooth random picture, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def prompts(family: str) -> list[Prompt]:
    """One prompt of each kind: no picture, one, another with that text, tall, long text, two, several turns."""
    image = FAMILIES[family].placeholder
    return [
        Prompt("text only", "USER: hello there\nASSISTANT:"),
        Prompt("one picture", f"USER: {image} what is this?\nASSISTANT:", (picture(1),)),
        Prompt("other picture", f"USER: {image} what is this?\nASSISTANT:", (picture(2),)),
        Prompt("tall picture", f"USER: {image} {_TALE}\nASSISTANT:", (picture(3, 60, 120),)),
        Prompt("long", f"USER: {_TALE * 4}{image} {_TALE * 2}\nASSISTANT: the tale of", (picture(4, 64, 64),)),
        Prompt(
            "two pictures",
            f"USER: {image} and {image} which is red?\nASSISTANT:",
            (picture(5, 56, 56), picture(6, 112, 70)),
        ),
        Prompt(
            "turns",
            f"USER: {image} what is this?\nASSISTANT: the red tree.\nUSER: and {image} this?\nASSISTANT: "
            "the blue tree.\nUSER: tell the tale\nASSISTANT:",
            (picture(1), picture(7, 70, 70)),
        ),
    ]


def prompt(family: str, name: str) -> Prompt:
    """The prompt of that name."""
    return next(each for each in prompts(family) if each.name == name)


def many(family: str, count: int) -> list[Prompt]:
    """`count` different prompts, text only every fourth: for batches."""
    image = FAMILIES[family].placeholder
    made: list[Prompt] = []
    for seed in range(count):
        words = " ".join(np.random.default_rng(seed).permutation(_TALE.split()).tolist())
        if seed % 4 == 3:
            made.append(Prompt(f"number {seed}", f"USER: {words}\nASSISTANT:"))
        else:
            made.append(Prompt(f"number {seed}", f"USER: {image} {words}\nASSISTANT:", (picture(100 + seed),)))
    return made
