"""The grounds that scenes stand on: a meadow, a beach, snow, a night, a room, a street."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vllm_specvlm.zoo.scenes.canvas import SIDE, Canvas, Colour


@dataclass(frozen=True)
class Ground:
    """``name`` as a noun, ``where`` as answers put it, a ``mood`` sentence, and what draws it."""

    name: str
    where: str
    mood: str
    draw: Callable[[random.Random], Canvas]


def _shade(colour: Colour, rng: random.Random, spread: int = 14) -> Colour:
    red, green, blue = (max(0, min(255, channel + rng.randint(-spread, spread))) for channel in colour)
    return red, green, blue


def _bands(rng: random.Random, upper: Colour, lower: Colour, horizon: float, names: tuple[str, str]) -> Canvas:
    """Two graded bands that meet at the ``horizon`` (a share of the height), marked with ``names``."""
    rows = np.arange(SIDE)[:, None] / SIDE
    fade = 1 + 0.18 * (rows - horizon)
    colours = np.where(rows < horizon, _shade(upper, rng), _shade(lower, rng)) * fade
    array = np.broadcast_to(colours[:, None, :], (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    canvas = Canvas(Image.fromarray(np.ascontiguousarray(array)))
    canvas.mark((0, 0, SIDE, horizon * SIDE), names[0])
    canvas.mark((0, horizon * SIDE, SIDE, SIDE), names[1])
    return canvas


def _meadow(rng: random.Random) -> Canvas:
    canvas = _bands(rng, (150, 205, 245), (96, 176, 72), rng.uniform(0.35, 0.55), ("sky", "grass"))
    pen = canvas.pen()
    for _ in range(60):
        x, y = rng.uniform(0, SIDE), rng.uniform(0.6 * SIDE, SIDE)
        pen.line((x, y, x + rng.uniform(-4, 4), y - rng.uniform(6, 14)), fill=(60, 130, 50), width=2)
    return canvas


def _beach(rng: random.Random) -> Canvas:
    canvas = _bands(rng, (170, 215, 245), (236, 214, 160), rng.uniform(0.5, 0.62), ("sky", "sand"))
    top, bottom = rng.uniform(0.3, 0.36) * SIDE, rng.uniform(0.5, 0.56) * SIDE
    canvas.pen().rectangle((0, top, SIDE, bottom), fill=_shade((40, 120, 190), rng))
    canvas.mark((0, top, SIDE, bottom), "sea")
    return canvas


def _snow(rng: random.Random) -> Canvas:
    canvas = _bands(rng, (190, 205, 220), (245, 248, 252), rng.uniform(0.35, 0.55), ("sky", "snow"))
    pen = canvas.pen()
    for _ in range(50):
        x, y, r = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(2, 4)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
    return canvas


def _night(rng: random.Random) -> Canvas:
    canvas = _bands(rng, (24, 28, 70), (30, 56, 44), rng.uniform(0.5, 0.65), ("night", "ground"))
    pen = canvas.pen()
    for _ in range(30):
        x, y, r = rng.uniform(0, SIDE), rng.uniform(0, 0.45 * SIDE), rng.uniform(1, 3)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(250, 245, 200))
    return canvas


def _room(rng: random.Random) -> Canvas:
    wall = rng.choice(((240, 225, 190), (215, 230, 225), (235, 205, 205)))
    canvas = _bands(rng, wall, (150, 105, 70), rng.uniform(0.6, 0.72), ("wall", "floor"))
    pen = canvas.pen()
    for column in range(1, 8):
        pen.line((column * SIDE / 8, 0.74 * SIDE, column * SIDE / 8, SIDE), fill=(120, 82, 52), width=2)
    return canvas


def _street(rng: random.Random) -> Canvas:
    canvas = _bands(rng, (200, 215, 225), (120, 120, 124), rng.uniform(0.5, 0.6), ("sky", "road"))
    pen = canvas.pen()
    for column in range(6):
        x = column * SIDE / 5 - rng.uniform(0, 30)
        pen.rectangle((x, 0.86 * SIDE, x + 34, 0.89 * SIDE), fill=(240, 240, 235))
    for column in range(4):
        x, top = column * SIDE / 4, rng.uniform(0.12, 0.35) * SIDE
        pen.rectangle((x + 4, top, x + SIDE / 4 - 4, 0.5 * SIDE), fill=_shade((165, 140, 130), rng, 24))
    return canvas


GROUNDS: tuple[Ground, ...] = (
    Ground("meadow", "in a meadow", "The grass is green and the sky is clear.", _meadow),
    Ground("beach", "on a beach", "Behind the sand one can see the blue sea.", _beach),
    Ground("snow", "in the snow", "It looks cold, for everything around is white.", _snow),
    Ground("night", "at night", "Stars are shining in the dark sky.", _night),
    Ground("room", "in a room", "The floor is made of brown wood.", _room),
    Ground("street", "on a street", "There are buildings along the road.", _street),
)
