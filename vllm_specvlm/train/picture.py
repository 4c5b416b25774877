"""Curves as a small PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _LEFT, _MARGIN = 640, 180, 56, 26
_COLOURS = ((31, 90, 180), (215, 90, 30), (40, 140, 70))
_INK, _GRID = (60, 60, 60), (225, 225, 225)

Points = Sequence[tuple[float, float]]


def draw(path: Path, panels: Sequence[tuple[str, Mapping[str, Points]]]) -> None:
    """Write one panel per entry, one below the other: a title, and by name the points of a line."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT * len(panels)), "white")
    canvas = ImageDraw.Draw(image)
    for index, (title, lines) in enumerate(panels):
        _panel(canvas, _HEIGHT * index, title, lines)
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG", optimize=True)
    partial.replace(path)


def _panel(canvas: ImageDraw.ImageDraw, top: int, title: str, lines: Mapping[str, Points]) -> None:
    left, right, upper, lower = _LEFT, _WIDTH - 12, top + _MARGIN, top + _HEIGHT - _MARGIN
    everything = [point for points in lines.values() for point in points]
    canvas.text((left, top + 6), title, fill=_INK)
    if not everything:
        canvas.text((left, (upper + lower) // 2), "nothing yet", fill=_INK)
        return
    x0, x1 = min(x for x, _ in everything), max(x for x, _ in everything)
    y0, y1 = min(y for _, y in everything), max(y for _, y in everything)
    pad = (y1 - y0) * 0.05 or abs(y1) * 0.05 or 1.0
    y0, y1 = y0 - pad, y1 + pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        return left + across * (right - left), lower - (y - y0) / (y1 - y0) * (lower - upper)

    for share in (0.0, 0.5, 1.0):
        value = y0 + share * (y1 - y0)
        _, y = place(x0, value)
        canvas.line([(left, y), (right, y)], fill=_GRID)
        canvas.text((4, y - 5), f"{value:.4g}", fill=_INK)
    canvas.text((left, lower + 6), f"step {x0:.0f}", fill=_INK)
    canvas.text((right - 60, lower + 6), f"step {x1:.0f}", fill=_INK)
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        placed = [place(x, y) for x, y in points]
        if len(placed) > 1:
            canvas.line(placed, fill=colour, width=2)
        for x, y in placed if len(placed) < 40 else ():
            canvas.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
        if len(lines) > 1:
            canvas.text((left + 150 + 120 * index, top + 6), name, fill=colour)
