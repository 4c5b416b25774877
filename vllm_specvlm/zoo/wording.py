"""Small pieces of English that questions and answers are put together from."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_specvlm.zoo.pictures import Item

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
NOUNS = ("picture", "image", "drawing", "scene")

# Two ways to name the nine places; a question uses one and its answer the same.
PLACE_NAMES: tuple[tuple[str, ...], ...] = (
    (
        "top left",
        "top middle",
        "top right",
        "middle left",
        "center",
        "middle right",
        "bottom left",
        "bottom middle",
        "bottom right",
    ),
    (
        "upper left",
        "upper middle",
        "upper right",
        "left",
        "middle",
        "right",
        "lower left",
        "lower middle",
        "lower right",
    ),
)
ROW_NAMES: tuple[tuple[str, ...], ...] = (
    ("top row", "middle row", "bottom row"),
    ("upper row", "center row", "lower row"),
)

# The verb that says a shape is somewhere depends on the shape: something to look at the picture for, even in plain
# words.
VERBS = {
    "circle": "sits",
    "ring": "sits",
    "square": "stands",
    "cross": "stands",
    "star": "appears",
    "heart": "appears",
    "triangle": "is",
    "diamond": "lies",
}


def capital(text: str) -> str:
    """``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def article(words: str) -> str:
    """``words`` after "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def name(item: Item, *, size: bool = False) -> str:
    """ "red star", or "large red star"."""
    return f"{item.size} {item.colour} {item.shape}" if size else f"{item.colour} {item.shape}"


def plural(word: str, count: int) -> str:
    """``word``, with the ending of the plural unless ``count`` is 1."""
    if count == 1:
        return word
    return word + ("es" if word.endswith("s") else "s")


def counted(word: str, count: int) -> str:
    """ "one star", "three stars", "no stars"."""
    return f"{NUMBERS[count]} {plural(word, count)}"


def listing(parts: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"
