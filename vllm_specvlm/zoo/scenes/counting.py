"""Counting and spatial relations: several things of two kinds, or two to four different things side by side."""

from __future__ import annotations

import random

from vllm_specvlm.zoo.scenes.canvas import NUMBERS, SIDE, Canvas, Split, wording
from vllm_specvlm.zoo.scenes.concepts import BY_NAME
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import article, capital, listing

MOST = 5  # of one kind
COUNT_WORDS = ("", "", "two", "three", "four", "five")  # the mark's second word, by how many are alike

_HOW_MANY = (
    "How many {things} are there?",
    "Count the {things}.",
    "How many {things} can you see?",
    "What is the number of {things} in the picture?",
    "Tell me how many {things} the picture shows.",
    "How many {things} does the image contain?",
)
_IN_ALL = (
    "How many things are there in all?",
    "Count everything in the picture.",
    "What is the total number of things?",
    "How many objects does the picture show altogether?",
    "Tell me how many objects you can count.",
)
_MORE = (
    "Are there more {a} or more {b}?",
    "Which are there more of, {a} or {b}?",
    "Do you see more {a} than {b}, or the other way round?",
    "Compare the number of {a} and {b}.",
    "Of {a} and {b}, which are more numerous?",
)
_BOTH = (
    "What is shown, and how many of each?",
    "Count the things of every kind.",
    "Give me the number of every kind of thing.",
    "Make an inventory of the picture.",
    "Which things are there, and how often does each occur?",
)
_WHERE = (
    "Where is the {thing}?",
    "In which part of the picture is the {thing}?",
    "Tell me where the {thing} is.",
    "Can you find the {thing}?",
    "What is the position of the {thing}?",
    "Where in the image do you see the {thing}?",
)
_BESIDE = (
    "What is {relation} the {thing}?",
    "Which thing is {relation} the {thing}?",
    "Name what you see {relation} the {thing}.",
    "Tell me what is {relation} the {thing}.",
    "What can be found {relation} the {thing}?",
)
_IS_IT = (
    "Is the {a} {relation} the {b}?",
    "True or false: the {a} is {relation} the {b}.",
    "Would you say that the {a} is {relation} the {b}?",
    "Does the picture show the {a} {relation} the {b}?",
    "Can one say that the {a} is {relation} the {b}?",
)
_RELATIONS = {(-1, 0): "to the left of", (1, 0): "to the right of", (0, -1): "above", (0, 1): "below"}
_ROW = ("on the left", "in the middle", "on the right")
_CORNERS = (("at the top left", "at the top right"), ("at the bottom left", "at the bottom right"))


def _ground(rng: random.Random) -> Canvas:
    return Canvas.plain((rng.randint(185, 245), rng.randint(190, 245), rng.randint(185, 245)))


def _some(name: str, count: int) -> str:
    """ "one cat", "three cats"."""
    concept = BY_NAME[name]
    return f"{NUMBERS[count]} {concept.name if count == 1 else concept.plural}"


def _herd(sources: Sources, rng: random.Random, split: Split) -> Sample:
    canvas = _ground(rng)
    kinds = rng.sample(sources.concepts(split), rng.choice((1, 2, 2)))
    counts = [rng.randint(1, MOST), rng.randint(1, 3)][: len(kinds)]
    cells = rng.sample(range(9), sum(counts))
    for name, count in zip(kinds, counts, strict=True):
        sprite = sources.sprite(rng, name, split, rng.uniform(78, 100))
        for cell in cells[:count]:
            x, y = (cell % 3 + 0.5) * SIDE / 3, (cell // 3 + 0.5) * SIDE / 3
            canvas.paste(sprite, x + rng.uniform(-6, 6), y + rng.uniform(-6, 6), name, COUNT_WORDS[count])
        cells = cells[count:]
    total, style = sum(counts), sum(counts) + len(kinds)
    which = rng.randrange(len(kinds))
    things, some = BY_NAME[kinds[which]].plural, _some(kinds[which], counts[which])
    be = "is" if counts[which] == 1 else "are"
    every = [_some(name, count) for name, count in zip(kinds, counts, strict=True)]
    turns = [
        Turn(
            wording(rng, split, _HOW_MANY).format(things=things),
            (f"There {be} {some}.", f"I count {some}.", f"The picture shows {some}.")[counts[which] % 3],
            (NUMBERS[counts[which]],),
        ),
        Turn(
            wording(rng, split, _BOTH),
            (f"There are {listing(every)}." if total > 1 else f"There is {every[0]}.", f"I see {listing(every)}.")[
                style % 2
            ],
            tuple(every),
        ),
    ]
    if total <= 6:
        word = NUMBERS[total]
        turns.append(
            Turn(
                wording(rng, split, _IN_ALL),
                (f"There {'is' if total == 1 else 'are'} {word} in all.", f"Altogether I count {word}.")[style % 2],
                (word,),
            )
        )
    if len(kinds) == 2:
        a, b = (BY_NAME[name].plural for name in kinds)
        if counts[0] == counts[1]:
            text, fact = f"Neither: there are as many {a} as {b}, namely {NUMBERS[counts[0]]}.", "as many"
        else:
            more = int(counts[1] > counts[0])
            fact = (a, b)[more]
            text = f"There are more {fact}: {listing(every)}."
        turns.append(Turn(wording(rng, split, _MORE).format(a=a, b=b), text, (fact,)))
    rng.shuffle(turns)
    return Sample("count", canvas.finish(rng), tuple(canvas.marks), tuple(turns))


def _relations(sources: Sources, rng: random.Random, split: Split) -> Sample:
    canvas = _ground(rng)
    square = rng.random() < 0.5
    names = rng.sample(sources.concepts(split), 4 if square else 3)
    spots = [(column, row) for row in (0, 1) for column in (0, 1)] if square else [(c, 0) for c in range(3)]
    at = dict(zip(spots, names, strict=True))
    place = {name: _CORNERS[row][column] if square else _ROW[column] for (column, row), name in at.items()}
    for (column, row), name in at.items():
        side = rng.uniform(100, 140) if square else rng.uniform(84, 106)
        x = (column + 0.5) * SIDE / (2 if square else 3)
        y = (row + 0.5) * SIDE / 2 if square else rng.uniform(0.4, 0.6) * SIDE
        canvas.paste(sources.sprite(rng, name, split, side), x, y, name)
    near = [
        (at[spot], relation, at[spot[0] - dx, spot[1] - dy])
        for spot in spots
        for (dx, dy), relation in _RELATIONS.items()
        if (spot[0] - dx, spot[1] - dy) in at
    ]
    turns = []
    for name in rng.sample(names, 2):
        style = ("animal", "food", "plant", "vehicle", "object").index(BY_NAME[name].group)
        turns.append(
            Turn(
                wording(rng, split, _WHERE).format(thing=name),
                (f"The {name} is {place[name]}.", f"You can find it {place[name]}.", f"{capital(place[name])}.")[
                    style % 3
                ],
                (place[name].removeprefix("at the ").removeprefix("in the ").removeprefix("on the "),),
            )
        )
    for found, relation, thing in rng.sample(near, 2):
        style = ("animal", "food", "plant", "vehicle", "object").index(BY_NAME[found].group)
        turns.append(
            Turn(
                wording(rng, split, _BESIDE).format(relation=relation, thing=thing),
                (
                    f"{capital(relation)} the {thing} there is {article(found)}.",
                    f"It is {article(found)}.",
                    f"The {found} is {relation} the {thing}.",
                )[style % 3],
                (found,),
            )
        )
    a, relation, b = rng.choice(near)
    yes = rng.random() < 0.5
    if not yes:
        a, b = b, a
    asked = wording(rng, split, _IS_IT).format(a=a, b=b, relation=relation)
    opposite = {"to the left of": "to the right of", "above": "below"}
    opposite |= {value: key for key, value in opposite.items()}
    text = f"Yes, the {a} is {relation} the {b}." if yes else f"No, the {a} is {opposite[relation]} the {b}."
    turns.append(Turn(asked, text, ("yes|true" if yes else "no|false",)))
    rng.shuffle(turns)
    return Sample("count", canvas.finish(rng), tuple(canvas.marks), tuple(turns))


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """Things to count, or things whose places matter."""
    return (_herd if rng.random() < 0.55 else _relations)(sources, rng, split)
