"""Pictures that the project draws itself: one to six coloured shapes on a 3 x 3 board of places.

A :class:`Scene` is what a picture shows; :func:`draw` renders it. Everything depends on the ``random.Random`` passed
in, so a seed fixes a picture to the last pixel. A scene belongs to the training or to the test split by a hash of its
contents: no test scene is ever trained on, whatever the seeds.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "test"]

DATA_VERSION = 1  # raise when drawing or wording changes: the trained parts were made with one version

SIDE = 192  # pixels
BOARD = 3  # places per row and column
CELL = SIDE // BOARD
PLACES = BOARD * BOARD

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "blue": (40, 70, 220),
    "green": (40, 160, 60),
    "yellow": (238, 215, 40),
    "purple": (140, 50, 170),
    "orange": (242, 135, 25),
    "black": (18, 18, 18),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
SIZES = ("small", "large")
_RADII = {"small": (15.0, 18.5), "large": (24.5, 30.0)}  # pixels
_LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "grid": ((0, 2, 6, 8), (0, 1, 3, 4), (0, 2, 3, 5, 6, 8), (3, 4, 5, 6, 7, 8)),
    "row": ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    "column": ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    "diagonal": ((0, 4, 8), (2, 4, 6)),
}


@dataclass(frozen=True)
class Item:
    """One shape: ``size`` of SIZES, ``colour`` of COLOURS, ``shape`` of SHAPES, at ``place`` 0..8 in reading order."""

    size: str
    colour: str
    shape: str
    place: int

    @property
    def row(self) -> int:
        """Row of the place, 0 at the top."""
        return self.place // BOARD

    @property
    def column(self) -> int:
        """Column of the place, 0 at the left."""
        return self.place % BOARD


@dataclass(frozen=True)
class Scene:
    """Items in reading order; no two share a place, or both colour and shape. ``layout`` is "free" or how they are
    arranged.
    """

    items: tuple[Item, ...]
    layout: str

    @property
    def split(self) -> Split:
        """The split this scene belongs to: one in eight is held out."""
        text = ";".join(f"{item.size} {item.colour} {item.shape} {item.place}" for item in self.items)
        return "test" if zlib.crc32(text.encode()) % 8 == 0 else "train"

    def at(self, place: int) -> Item | None:
        """The item at ``place``, if any."""
        return next((item for item in self.items if item.place == place), None)


def _any_scene(rng: random.Random) -> Scene:
    layout = rng.choice(("free", "free", "free", "grid", "row", "column", "diagonal"))
    if layout == "free":
        places = sorted(rng.sample(range(PLACES), rng.randint(1, 6)))
    else:
        places = list(rng.choice(_LAYOUTS[layout]))
    looks: set[tuple[str, str]] = set()
    items = []
    # Favour repeated colours and shapes: counting and comparing are dull when everything differs.
    colours = rng.sample(list(COLOURS), rng.randint(2, 6))
    shapes = rng.sample(SHAPES, rng.randint(3, 6))
    for place in places:
        look = (rng.choice(colours), rng.choice(shapes))
        while look in looks:
            look = (rng.choice(list(COLOURS)), rng.choice(SHAPES))
        looks.add(look)
        items.append(Item(rng.choice(SIZES), *look, place))
    return Scene(tuple(items), layout if len(items) > 2 else "free")


def sample_scene(rng: random.Random, split: Split) -> Scene:
    """Draw scenes until one belongs to ``split``."""
    while True:
        scene = _any_scene(rng)
        if scene.split == split:
            return scene


def _paint(canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    if shape == "circle":
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif shape == "square":
        canvas.rectangle([x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85], fill=fill)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=fill)
    elif shape == "diamond":
        canvas.polygon([(x, y - r), (x + r * 0.75, y), (x, y + r), (x - r * 0.75, y)], fill=fill)
    elif shape == "star":
        reach = [r if i % 2 == 0 else r * 0.42 for i in range(10)]
        angles = [i * math.pi / 5 for i in range(10)]
        canvas.polygon(
            [(x + d * math.sin(a), y - d * math.cos(a)) for d, a in zip(reach, angles, strict=True)], fill=fill
        )
    elif shape == "cross":
        arm = r * 0.33
        canvas.rectangle([x - arm, y - r, x + arm, y + r], fill=fill)
        canvas.rectangle([x - r, y - arm, x + r, y + arm], fill=fill)
    elif shape == "ring":
        canvas.ellipse([x - r, y - r, x + r, y + r], outline=fill, width=round(r * 0.36))
    elif shape == "heart":
        canvas.ellipse([x - r, y - r * 0.9, x, y + r * 0.1], fill=fill)
        canvas.ellipse([x, y - r * 0.9, x + r, y + r * 0.1], fill=fill)
        canvas.polygon([(x - r * 0.95, y - r * 0.2), (x + r * 0.95, y - r * 0.2), (x, y + r)], fill=fill)
    else:
        raise ValueError(f"No such shape: {shape}")


def _background(rng: random.Random) -> Image.Image:
    """A greyish ground, plain, graded or striped: far from every shape's colour, different in every picture."""
    grey = rng.randint(105, 175)
    tint = np.array([grey + rng.randint(-14, 14) for _ in range(3)], dtype=np.float32)
    ground = np.broadcast_to(tint, (SIDE, SIDE, 3)).copy()
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    pattern = rng.choice(("plain", "down", "across", "stripes", "checks"))
    depth = rng.uniform(6, 18)
    if pattern == "down":
        ground += depth * ramp[:, None, None]
    elif pattern == "across":
        ground += depth * ramp[None, :, None]
    elif pattern == "stripes":
        ground += depth * 0.5 * np.sign(np.sin(ramp * rng.uniform(12, 40)))[:, None, None]
    elif pattern == "checks":
        wave = np.sign(np.sin(ramp * rng.uniform(10, 24)))
        ground += depth * 0.5 * (wave[:, None] * wave[None, :])[..., None]
    return Image.fromarray(ground.clip(0, 255).astype(np.uint8))


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Render ``scene`` as an RGB picture of SIDE x SIDE pixels; ``rng`` gives ground, jitter of place, size, colour,
    and noise.
    """
    picture = _background(rng)
    canvas = ImageDraw.Draw(picture)
    for item in scene.items:
        radius = rng.uniform(*_RADII[item.size])
        slack = min(12.0, CELL / 2 - radius)
        x = item.column * CELL + CELL / 2 + rng.uniform(-slack, slack)
        y = item.row * CELL + CELL / 2 + rng.uniform(-slack, slack)
        fill = tuple(max(0, min(255, channel + rng.randint(-16, 16))) for channel in COLOURS[item.colour])
        _paint(canvas, item.shape, x, y, radius, fill)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 9), (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
