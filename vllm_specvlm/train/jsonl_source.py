"""Conversations in LLaVA's format, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from pathlib import Path
from typing import Any

from vllm_specvlm.train.conversation import Conversation, Split, Turn
from vllm_specvlm.train.errors import RecipeError

_HELD_OUT = 50
"""One line in so many belongs to split `test`, by a hash of its text."""


class JsonlSource:
    """Lines such as {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
    {"from": "gpt", "value": "A cat."}]}. "image" may be a list, or missing; an answer may be missing at the end.

    Only the places of the lines are kept in memory.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """`images`: folder of the pictures, by default the file's.

        Raises RecipeError if the file cannot be read or has no lines.
        """
        self._path = path
        self._images = path.parent if images is None else images
        self._lines: dict[Split, list[tuple[int, int]]] = {"train": [], "test": []}
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                start = 0
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    if line.strip():
                        split: Split = "test" if zlib.crc32(line.strip()) % _HELD_OUT == 0 else "train"
                        self._lines[split].append((start, number))
                    start += len(line)
        except OSError as error:
            raise RecipeError(f"The data '{path}' cannot be read ({error.strerror}); give a file.") from error
        if not self._lines["train"]:
            raise RecipeError(f"The data '{path}' has no conversation to train on; give a file with more lines.")
        self._digest = f"sha256 {digest.hexdigest()[:16]}"

    def digest(self) -> str:
        """Of the file; the pictures are not read for it."""
        return self._digest

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """See `Source`. A file too small to have held-out lines gives those it has.

        Raises RecipeError, with the line, for one that is no conversation.
        """
        start, number = rng.choice(self._lines[split] or self._lines["train"])
        with self._path.open("rb") as file:
            file.seek(start)
            line = file.readline()
        try:
            return self._parsed(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"Line {number} of '{self._path}' is no conversation in LLaVA's format ({error}); correct the line."
            ) from error

    def _parsed(self, entry: dict[str, Any]) -> Conversation:
        named = entry.get("image", [])
        pictures = tuple(self._images / name for name in ([named] if isinstance(named, str) else named))
        said = entry["conversations"]
        turns: list[Turn] = []
        for asking, answering in zip(said[::2], [*said[1::2], None], strict=False):
            if asking["from"] not in ("human", "user") or (answering and answering["from"] not in ("gpt", "assistant")):
                raise ValueError("turns do not alternate between human and gpt")
            turns.append(Turn(_parts(asking["value"]), answering["value"].strip() if answering else None))
        shown = sum(part is None for turn in turns for part in turn.question)
        if not turns or shown > len(pictures):
            raise ValueError(f"it has {len(turns)} turns, {shown} <image> and {len(pictures)} pictures")
        if shown < len(pictures):  # LLaVA shows pictures that the text does not mention first
            missing = (None,) * (len(pictures) - shown)
            turns[0] = Turn((*missing, *turns[0].question), turns[0].answer)
        return Conversation(pictures, tuple(turns))


def _parts(text: str) -> tuple[str | None, ...]:
    """Split at `<image>`, whose line break belongs to it: chat templates write their own."""
    parts: list[str | None] = []
    for index, stretch in enumerate(text.split("<image>")):
        if index:
            parts.append(None)
        if stretch.strip():
            parts.append(stretch.strip("\n"))
    return tuple(parts)
