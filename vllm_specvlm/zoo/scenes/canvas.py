"""A picture in the making, and what it shows where: the labels that the first training stage learns from."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Split = Literal["train", "validation", "test"]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Colour = tuple[int, int, int]
Choice = TypeVar("Choice")

SIDE = 336  # pixels of a drawn picture: the finer of the two settings; the coarser one halves it

COLOURS: dict[str, Colour] = {
    "red": (214, 38, 40),
    "blue": (38, 76, 214),
    "green": (36, 150, 60),
    "yellow": (242, 214, 40),
    "orange": (240, 134, 30),
    "purple": (136, 52, 168),
    "black": (24, 24, 24),
    "brown": (128, 78, 36),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Mark:
    """``main`` (a word, or a digit) is seen in ``box``; ``side`` is a second word about it (its colour, how many
    alike), or "".
    """

    box: Box
    main: str
    side: str = ""


@dataclass
class Canvas:
    """A picture of SIDE x SIDE pixels and its marks, later ones in front."""

    picture: Image.Image
    marks: list[Mark] = field(default_factory=list)

    @classmethod
    def plain(cls, colour: Colour) -> Canvas:
        """One colour all over."""
        return cls(Image.new("RGB", (SIDE, SIDE), colour))

    def pen(self) -> ImageDraw.ImageDraw:
        """What draws on the picture."""
        return ImageDraw.Draw(self.picture)

    def mark(self, box: Box, main: str, side: str = "") -> None:
        """Note what ``box`` shows."""
        self.marks.append(Mark(box, main, side))

    def paste(self, sprite: Image.Image, x: float, y: float, main: str, side: str = "") -> None:
        """Put an RGBA ``sprite`` with its centre at ``(x, y)``."""
        left, top = round(x - sprite.width / 2), round(y - sprite.height / 2)
        self.picture.paste(sprite, (left, top), sprite)
        self.mark((left, top, left + sprite.width, top + sprite.height), main, side)

    def write(
        self, x: float, y: float, words: str, font: ImageFont.FreeTypeFont, colour: Colour, *, anchor: str = "mm"
    ) -> Box:
        """Write ``words`` (upper or lower case as given) at ``(x, y)``; every word, and every digit of a number,
        gets a mark in lower case.

        Digits are set one patch apart in the coarser setting, so that each has a visual token of its own.
        """
        pen = self.pen()
        runs = [(word, _width(word, font)) for word in words.split(" ")]
        gap = font.getlength(" ") or font.size / 3
        total = sum(width for _, width in runs) + gap * (len(runs) - 1)
        left = {"l": x, "m": x - total / 2, "r": x - total}[anchor[0]]
        start, half = left, font.size * 0.6
        for word, width in runs:
            if word.isdigit():
                step = width / len(word)
                for index, digit in enumerate(word):
                    middle = left + step * (index + 0.5)
                    pen.text((middle, y), digit, font=font, fill=colour, anchor="mm")
                    self.mark((middle - step / 2, y - half, middle + step / 2, y + half), digit)
            else:
                pen.text((left, y), word, font=font, fill=colour, anchor="lm")
                label = word.strip("$.,:!?").lower()
                if label:
                    self.mark((left, y - half, left + width, y + half), label)
            left += width + gap
        return (start, y - half, start + total, y + half)

    def finish(self, rng: random.Random) -> Image.Image:
        """The picture with a little noise, so that no two are alike."""
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 6), (SIDE, SIDE, 1))
        array = np.asarray(self.picture, dtype=np.float32) + noise
        self.picture = Image.fromarray(array.clip(0, 255).astype(np.uint8))
        return self.picture


DIGIT_PITCH = 28.0  # pixels between digits: a patch of the coarser setting


def _width(word: str, font: ImageFont.FreeTypeFont) -> float:
    if word.isdigit():
        return max(DIGIT_PITCH, font.getlength("0")) * len(word)
    return font.getlength(word)


def labels(marks: Sequence[Mark], grid: int) -> list[Mark | None]:
    """What each of the ``grid * grid`` patches shows, in reading order: the last mark that covers a third of it."""
    side = SIDE / grid
    shown: list[Mark | None] = [None] * (grid * grid)
    for mark in marks:
        left, top, right, bottom = mark.box
        for row in range(max(0, int(top / side)), min(grid, int(bottom / side) + 1)):
            high = min(bottom, (row + 1) * side) - max(top, row * side)
            for column in range(max(0, int(left / side)), min(grid, int(right / side) + 1)):
                wide = min(right, (column + 1) * side) - max(left, column * side)
                if high > 0 and wide > 0 and high * wide > 0.34 * side * side:
                    shown[row * grid + column] = mark
    return shown


def split_of(contents: str) -> Split:
    """The split a picture's contents belong to, by their hash: an eighth each for test and validation."""
    code = zlib.crc32(contents.encode()) % 8
    return "test" if code == 0 else "validation" if code == 1 else "train"


def wording(rng: random.Random, split: Split, forms: Sequence[Choice]) -> Choice:
    """One of ``forms``: the last is for the test split alone, the one before it for validation alone."""
    if split == "test":
        return forms[-1]
    if split == "validation":
        return forms[-2]
    return rng.choice(forms[:-2])
