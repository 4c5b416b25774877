"""Charts: standing bars, lying bars, lines and pies, with values written where they are."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from PIL import ImageFont

from vllm_specvlm.zoo.scenes.canvas import COLOURS, NUMBERS, SIDE, Canvas, Split, split_of, wording
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import capital, listing

_TITLES = ["sales", "rain", "visits", "votes", "games", "books"]
_CATEGORIES = (
    ("days", ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]),
    ("months", ["jan", "feb", "mar", "apr", "may", "jun"]),
    ("teams", ["red", "blue", "green", "orange"]),
    ("fruits", ["pears", "plums", "figs", "kiwis"]),
)
_SHARES = range(2, 11)
_INK = (30, 30, 36)
WORDS: tuple[str, ...] = (*_TITLES, *(word for _, words in _CATEGORIES for word in words), "bar", "line", "slice")

_HIGHEST = (
    "Which one is the highest?",
    "Which category has the largest value?",
    "What is the maximum, and where?",
    "Where does the chart reach its highest value?",
    "Which has the most?",
    "What is the biggest value in the chart?",
)
_LOWEST = (
    "Which one is the lowest?",
    "Which category has the smallest value?",
    "What is the minimum, and where?",
    "Where does the chart reach its lowest value?",
    "Which has the least?",
    "What is the smallest value in the chart?",
)
_VALUE = (
    "What is the value for {word}?",
    "How many are shown for {word}?",
    "Which number belongs to {word}?",
    "Tell me the value of {word}.",
    "What does the chart say for {word}?",
    "Read off the number for {word}.",
)
_SUMMARY = (
    "Summarize the chart.",
    "What does this chart show?",
    "Describe the chart with all its values.",
    "Explain the diagram to me.",
    "Write a short report about this chart.",
    "Please tell me what can be learned from this diagram.",
)
_COMPARE = (
    "Is {a} higher than {b}?",
    "Does {a} have more than {b}?",
    "Is the value of {a} larger than that of {b}?",
    "Has {a} a greater value than {b}?",
    "Compare {a} with {b}: is the first one larger?",
)
_TITLE = (
    "What is the title of the chart?",
    "What is the chart about?",
    "Which word stands above the chart?",
    "What does the headline say?",
    "Read the heading of the diagram.",
)
_LARGEST_SLICE = (
    "Which color has the largest slice?",
    "What is the biggest part of the pie?",
    "Which slice is the largest?",
    "Name the color of the largest share.",
    "Which color takes most of the pie?",
)
_PIE = (
    "Describe the pie chart.",
    "What does this pie show?",
    "Which slices does the pie have?",
    "Summarize the pie chart for me.",
    "Tell me how the pie is divided.",
)


def _bars(canvas: Canvas, sources: Sources, rng: random.Random, words: list[str], values: list[int]) -> None:
    font, small = sources.font(rng, 42), sources.font(rng, 34)
    colours = rng.sample([name for name in COLOURS if name != "black"], len(words))
    floor, pitch = SIDE - 44, (SIDE - 20) / len(words)
    for index, (word, value, colour) in enumerate(zip(words, values, colours, strict=True)):
        middle = 10 + pitch * (index + 0.5)
        top = floor - value / 9 * (SIDE - 150)
        wide = min(36.0, pitch * 0.36)
        canvas.pen().rectangle((middle - wide, top, middle + wide, floor), fill=COLOURS[colour])
        canvas.mark((middle - wide, top, middle + wide, floor), "bar", colour)
        canvas.write(middle, top - 24, str(value), font, _INK)
        canvas.write(middle, SIDE - 22, capital(word), _fit(small, capital(word), pitch - 8), _INK)
    canvas.pen().line((8, floor, SIDE - 8, floor), fill=_INK, width=3)


def _fit(font: ImageFont.FreeTypeFont, word: str, width: float) -> ImageFont.FreeTypeFont:
    length = font.getlength(word)
    return font if length <= width else font.font_variant(size=int(font.size * width / length))


def _lying(canvas: Canvas, sources: Sources, rng: random.Random, words: list[str], values: list[int]) -> None:
    font = sources.font(rng, 40)
    colours = rng.sample([name for name in COLOURS if name != "black"], len(words))
    pitch = (SIDE - 64) / len(words)
    for index, (word, value, colour) in enumerate(zip(words, values, colours, strict=True)):
        y = 58 + pitch * (index + 0.5)
        canvas.write(10, y, capital(word), _fit(font, capital(word), 100), _INK, anchor="lm")
        right = 120 + value / 9 * (SIDE - 180)
        canvas.pen().rectangle((120, y - pitch * 0.3, right, y + pitch * 0.3), fill=COLOURS[colour])
        canvas.mark((120, y - pitch * 0.3, right, y + pitch * 0.3), "bar", colour)
        canvas.write(right + 24, y, str(value), font, _INK)


def _line(canvas: Canvas, sources: Sources, rng: random.Random, words: list[str], values: list[int]) -> None:
    font, small = sources.font(rng, 42), sources.font(rng, 34)
    colour = rng.choice([name for name in COLOURS if name != "black"])
    pitch, floor = (SIDE - 20) / len(words), SIDE - 44
    points = [(10 + pitch * (index + 0.5), floor - 20 - value / 9 * (SIDE - 170)) for index, value in enumerate(values)]
    canvas.pen().line(points, fill=COLOURS[colour], width=8, joint="curve")
    for (x, y), word, value in zip(points, words, values, strict=True):
        canvas.pen().ellipse((x - 10, y - 10, x + 10, y + 10), fill=COLOURS[colour])
        canvas.mark((x - 14, y - 14, x + 14, y + 14), "line", colour)
        canvas.write(x, y - 34, str(value), font, _INK)
        canvas.write(x, SIDE - 22, capital(word), _fit(small, capital(word), pitch - 8), _INK)
    canvas.pen().line((8, floor, SIDE - 8, floor), fill=_INK, width=3)


_DRAW = {"bar chart": _bars, "chart with lying bars": _lying, "line chart": _line}


def _trend(values: list[int]) -> str:
    if values == sorted(values):
        return "The values rise from the first to the last."
    if values == sorted(values, reverse=True):
        return "The values fall from the first to the last."
    return "The values go up and down."


def _chart(sources: Sources, rng: random.Random, split: Split) -> Sample:
    while True:
        kind, title = rng.choice(list(_DRAW)), rng.choice(_TITLES)
        what, names = rng.choice(_CATEGORIES)
        words = rng.sample(names, rng.randint(2, 4))
        if what in ("days", "months"):
            words.sort(key=names.index)
        values = rng.sample(range(1, 10), len(words))
        if split_of(f"{title} {words} {values}") == split:
            break
    canvas = Canvas.plain((rng.randint(235, 255),) * 3)
    canvas.write(SIDE / 2, 28, capital(title), sources.font(rng, 38), _INK)
    _DRAW[kind](canvas, sources, rng, words, values)
    shown = [capital(word) for word in words]
    best, worst = values.index(max(values)), values.index(min(values))
    style = values[0] + len(values)
    pairs = [f"{name} has {value}" for name, value in zip(shown, values, strict=True)]
    a, b = rng.sample(range(len(words)), 2)
    which = rng.randrange(len(words))
    summary = (
        f"The {kind} shows {title} for {NUMBERS[len(words)]} {what}: {listing(pairs)}. The highest value is"
        f" {values[best]}, for {shown[best]}, and the lowest is {values[worst]}, for {shown[worst]}. {_trend(values)}",
        f"This is a {kind} about {title}. {capital(listing(pairs))}. {shown[best]} is in front, and {shown[worst]}"
        f" comes last. {_trend(values)}",
        f"{capital(title)} of {NUMBERS[len(words)]} {what} are drawn as a {kind}. {_trend(values)} {listing(pairs)}, so"
        f" {shown[best]} has the most.",
    )[style % 3]
    yes = values[a] > values[b]
    turns = [
        Turn(
            wording(rng, split, _HIGHEST),
            (
                f"{shown[best]} is the highest, with {values[best]}.",
                f"The largest value is {values[best]}, for {shown[best]}.",
            )[style % 2],
            (shown[best],),
        ),
        Turn(
            wording(rng, split, _LOWEST),
            (
                f"{shown[worst]} is the lowest, with {values[worst]}.",
                f"The smallest value is {values[worst]}, for {shown[worst]}.",
            )[style % 2],
            (shown[worst],),
        ),
        Turn(
            wording(rng, split, _VALUE).format(word=shown[which]),
            (
                f"The value for {shown[which]} is {values[which]}.",
                f"It is {values[which]}.",
                f"{shown[which]} has {values[which]}.",
            )[style % 3],
            (str(values[which]),),
        ),
        Turn(
            wording(rng, split, _COMPARE).format(a=shown[a], b=shown[b]),
            f"{'Yes' if yes else 'No'}, {shown[a]} has {values[a]} and {shown[b]} has {values[b]}.",
            ("yes" if yes else "no",),
        ),
        Turn(
            wording(rng, split, _TITLE),
            (f"The chart is about {title}.", f"Its title is {capital(title)}.")[style % 2],
            (title,),
        ),
        Turn(wording(rng, split, _SUMMARY), summary, (title, *shown, *map(str, values))),
    ]
    rng.shuffle(turns)
    return Sample("chart", canvas.finish(rng), tuple(canvas.marks), tuple(turns[:5]))


def _same_pies(colours: Sequence[str], shares: Sequence[int]) -> Iterator[tuple[list[str], list[int]]]:
    """Every list of slices that this pie might have been drawn from: rotated, since where a pie starts is random, and
    with shares that are multiples of the same.
    """
    factor = math.gcd(*shares)
    for times in range(1, max(_SHARES) * factor // max(shares) + 1):
        scaled = [share // factor * times for share in shares]
        if min(scaled) in _SHARES:
            for first in range(len(shares)):
                yield [*colours[first:], *colours[:first]], scaled[first:] + scaled[:first]


def _is_of(split: Split, colours: Sequence[str], shares: Sequence[int]) -> bool:
    """Whether a pie may be drawn for a split: the hashes of all lists that give the same picture say so."""
    return all(split_of(f"{names} {parts}") == split for names, parts in _same_pies(colours, shares))


def _pie(rng: random.Random, split: Split) -> Sample:
    while True:
        colours = rng.sample(list(COLOURS), rng.randint(2, 4))
        shares = [rng.choice(_SHARES) for _ in colours]
        largest = max(shares)
        clear = shares.count(largest) == 1 and sorted(shares)[-2] <= 0.75 * largest
        if clear and _is_of(split, colours, shares):
            break
    canvas = Canvas.plain((rng.randint(235, 255),) * 3)
    radius, start = rng.uniform(120, 150), rng.uniform(0, 360)
    x, y = SIDE / 2 + rng.uniform(-12, 12), SIDE / 2 + rng.uniform(-12, 12)
    for colour, share in zip(colours, shares, strict=True):
        end = start + 360 * share / sum(shares)
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.pen().pieslice(box, start, end, fill=COLOURS[colour], outline=(255, 255, 255), width=3)
        for step in range(int(start) + 6, int(end) - 5, 6):
            for reach in (0.4, 0.6, 0.82):
                px = x + reach * radius * math.cos(math.radians(step))
                py = y + reach * radius * math.sin(math.radians(step))
                canvas.mark((px - 14, py - 14, px + 14, py + 14), "slice", colour)
        start = end
    best = colours[shares.index(max(shares))]
    ordered = [name for _, name in sorted(zip(shares, colours, strict=True), reverse=True)]
    style = list(COLOURS).index(best)
    turns = (
        Turn(
            wording(rng, split, _LARGEST_SLICE),
            (f"The {best} slice is the largest.", f"{capital(best)}.", f"Most of the pie is {best}.")[style % 3],
            (best,),
        ),
        Turn(
            wording(rng, split, _PIE),
            (
                f"The pie has {NUMBERS[len(colours)]} slices: {listing(ordered)}. The {best} one is the largest.",
                f"It is a pie chart with {NUMBERS[len(colours)]} parts. From large to small: {listing(ordered)}.",
                f"The pie is cut into {listing(ordered)}; {best} takes the largest share.",
            )[style % 3],
            tuple(colours),
        ),
    )
    return Sample("chart", canvas.finish(rng), tuple(canvas.marks), turns)


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """A chart with its questions."""
    return _pie(rng, split) if rng.random() < 0.2 else _chart(sources, rng, split)
