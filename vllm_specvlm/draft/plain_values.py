"""The plain values of a checkpoint's `config.json`, read with mistrust: the file may be damaged, or made to do harm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

_MOST_BYTES = 1 << 20
"""Of a config.json: real ones have a few thousand."""
MOST = 1 << 24
"""Of any size or count in it: more must not be allocated to find out that it is wrong."""


def parsed(path: Path) -> Any:
    """The JSON in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or has more than a megabyte.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("it has brackets without end") from error


def model_type(folder: str | Path) -> object:
    """What the `config.json` in `folder` says it is of; None if nothing can be read there."""
    try:
        given = parsed(Path(folder).expanduser() / "config.json")
    except (OSError, ValueError, RuntimeError):  # the last is for "~nobody"
        return None
    return given.get("model_type") if isinstance(given, dict) else None


def check(value: Any, whose: str) -> None:
    """Refuse a dataclass with a field of another type than it has, or out of all bounds; ValueError in a sentence."""
    for name, hint in get_type_hints(type(value)).items():
        found = getattr(value, name)
        if found is None and hint in (int | None, str | None):
            continue
        if hint in (int, int | None):
            sound, wanted = is_count(found, 1), f"a whole number from 1 to {MOST}"
        elif hint is float:
            sound, wanted = type(found) in (int, float) and 0 < found < math.inf, "a number above 0"
        elif hint is bool:
            sound, wanted = isinstance(found, bool), "true or false"
        elif hint in (str, str | None):
            sound, wanted = isinstance(found, str), "a text"
        elif hint == dict[str, Any]:
            sound, wanted = isinstance(found, Mapping), "an object"
        else:
            continue
        if not sound:
            raise ValueError(f"The {whose} {name} is {found!r}; write {wanted}.")


def is_count(value: object, least: int) -> bool:
    """Whether it is a whole number, of a size that a network may have."""
    return type(value) is int and least <= value <= MOST
