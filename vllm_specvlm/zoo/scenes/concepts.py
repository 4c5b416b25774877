"""The things that scenes are made of: their names, the pictures that show them, and what may be said about them.

Pictures come from two collections: Noto Color Emoji (by code point) and Open Clip Art (by a pattern over the last two
parts of a file's path). Every concept has pictures of both, or several emoji, so that some can be held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Concept:
    """One kind of thing.

    Attributes
    ----------
    name:
        Singular, as the answers call it; ``plural`` likewise.
    group:
        "animal", "food", "plant", "vehicle" or "object".
    emoji:
        Code points of Noto glyphs.
    clips:
        Regular expression over "folder/file" of Open Clip Art, or "".
    stance:
        What it does in a scene: "sits", "is parked" ...
    remarks:
        Two sentences of general knowledge.
    """

    name: str
    plural: str
    group: str
    emoji: tuple[int, ...]
    clips: str
    stance: str
    remarks: tuple[str, str]


def _parse(line: str) -> Concept:
    name, plural, group, emoji, clips, stance, first, second = line.split("\t")
    codes = tuple(int(code, 16) for code in emoji.split())
    return Concept(name, plural, group, codes, clips, stance, (first, second))


_LINES = (Path(__file__).parent / "assets" / "concepts.tsv").read_text().splitlines()
CONCEPTS: tuple[Concept, ...] = tuple(_parse(line) for line in _LINES[1:])
BY_NAME: dict[str, Concept] = {concept.name: concept for concept in CONCEPTS}
