"""Questions about a scene, and their one right answer.

Every question is composed of choices (lead, wording, noun, naming of places); the same choices and the scene fix the
answer's wording. One in eight combinations of choices is held out for the test split, so test questions are phrasings
never trained on.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from vllm_specvlm.zoo import describe
from vllm_specvlm.zoo.pictures import BOARD, COLOURS, PLACES, SHAPES, Item, Scene, Split
from vllm_specvlm.zoo.wording import NOUNS, PLACE_NAMES, ROW_NAMES, VERBS, article, capital, counted, listing, name

KINDS = ("describe", "place", "row", "where", "count", "colour", "compare", "exist")
_WEIGHTS = (8, 3, 3, 4, 4, 3, 3, 3)

# Lead of a short question and of its answer.
_LEADS = (
    ("", ""),
    ("Tell me: ", ""),
    ("Hello! ", "Hello! "),
    ("Look at the {noun}. ", "Looking at the {noun}, "),
    ("A quick question: ", "In short, "),
    ("Please answer: ", "Sure, "),
)


@dataclass(frozen=True)
class Turn:
    """One question with its right answer; ``facts`` are strings that every right answer contains."""

    question: str
    answer: str
    kind: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class _Choice:
    """The wording of a short question."""

    lead: int
    wording: int
    noun: str
    naming: int

    def place(self, place: int) -> str:
        return PLACE_NAMES[self.naming][place]


Short = tuple[
    str, str, tuple[str, ...]
]  # question and answer (in lower case at the start where a lead may stand), facts


def _place(scene: Scene, choice: _Choice, rng: random.Random) -> Short:
    occupied = [item.place for item in scene.items]
    place = rng.choice(occupied) if rng.random() < 0.8 else rng.randrange(PLACES)
    where, noun = choice.place(place), choice.noun
    ask = (
        f"what is in the {where} of the {noun}?",
        f"what do you see in the {where}?",
        f"which shape is in the {where}?",
        f"what can be found in the {where} of this {noun}?",
        f"is there anything in the {where}?",
        f"name the object in the {where}.",
    )[choice.wording]
    item = scene.at(place)
    if item is None:
        nothing = (
            f"there is nothing in the {where} of the {noun}.",
            f"I see nothing in the {where}.",
            f"no shape is in the {where}.",
            f"nothing can be found in the {where} of this {noun}.",
            f"no, the {where} is empty.",
            f"the {where} has no object.",
        )[choice.wording]
        return ask, nothing, ("nothing" if choice.wording in (0, 1, 3) else "no",)
    thing, sized = name(item), name(item, size=True)
    full = (
        f"there is {article(sized)} in the {where} of the {noun}.",
        f"I see {article(thing)} in the {where}. It is {item.size}.",
        f"the shape in the {where} is {article(item.shape)}, and its color is {item.colour}.",
        f"{article(thing)} can be found in the {where} of this {noun}.",
        f"yes, {article(sized)} {VERBS[item.shape]} in the {where}.",
        f"the {where} has {article(sized)}.",
    )[choice.wording]
    if choice.wording == 2:
        return ask, full, (article(item.shape), item.colour)
    return ask, full, (sized,) if choice.wording in (0, 4, 5) else (thing,)


def _row(scene: Scene, choice: _Choice, rng: random.Random) -> Short:
    row = rng.randrange(BOARD)
    where, noun = ROW_NAMES[choice.naming][row], choice.noun
    found = [item for item in scene.items if item.row == row]
    ask = (
        f"what is in the {where}?",
        f"which shapes are in the {where} of the {noun}?",
        f"list the {where} of the {noun} from left to right.",
        f"how many shapes does the {where} have, and what are they?",
        f"read the {where} backwards.",
        f"what fills the {where} of this {noun}?",
    )[choice.wording]
    if not found:
        return ask, f"the {where} is empty.", ("empty",)
    if choice.wording == 4:
        found = found[::-1]
    things = listing([article(name(item)) for item in found])
    sized = listing([article(name(item, size=True)) for item in found])
    answer = (
        f"the {where} has {things}.",
        f"in the {where} of the {noun} there {'is' if len(found) == 1 else 'are'} {sized}.",
        f"{', then '.join(article(name(item)) for item in found)}.",
        f"it has {counted('shape', len(found))}: {things}.",
        f"from right to left, the {where} shows {things}.",
        f"{things} {'fills' if len(found) == 1 else 'fill'} the {where} of this {noun}.",
    )[choice.wording]
    return ask, answer, tuple(name(item, size=choice.wording == 1) for item in found)


def _where(scene: Scene, choice: _Choice, rng: random.Random) -> Short:
    item = rng.choice(scene.items)
    thing, noun, where = name(item), choice.noun, PLACE_NAMES[0][item.place]
    ask = (
        f"where is the {thing}?",
        f"in which part of the {noun} is the {thing}?",
        f"whereabouts is the {thing} in the {noun}?",
        f"find the {thing}, please.",
        f"where is the {thing}, and how big is it?",
        f"where is the {thing}, and what is next to it in its row?",
    )[choice.wording]
    beside = [other for other in scene.items if other.row == item.row and other != item]
    company = listing(["the " + name(other) for other in beside]) if beside else "nothing"
    answer = (
        f"the {thing} {VERBS[item.shape]} in the {where}.",
        f"the {thing} is in the {where} part of the {noun}.",
        f"you can find the {thing} in the {where} of the {noun}.",
        f"it {VERBS[item.shape]} in the {where}, and it is {item.size}.",
        f"the {thing} is in the {where}. It is {item.size}.",
        f"it is in the {where}. In the same row there is {company}.",
    )[choice.wording]
    extra = (
        (item.size,)
        if choice.wording in (3, 4)
        else tuple(name(other) for other in beside)
        if choice.wording == 5
        else ()
    )
    return ask, answer, (where, *extra)


def _count(scene: Scene, choice: _Choice, rng: random.Random) -> Short:
    noun = choice.noun
    chosen = rng.choice(scene.items)
    if rng.random() < 0.2:
        chosen = Item("small", rng.choice(list(COLOURS)), rng.choice(SHAPES), 0)
    test, single = rng.choice(
        (
            (lambda item: True, "shape"),
            (lambda item: item.colour == chosen.colour, f"{chosen.colour} shape"),
            (lambda item: item.shape == chosen.shape, chosen.shape),
            (lambda item: item.size == chosen.size, f"{chosen.size} shape"),
        )
    )
    found = [item for item in scene.items if test(item)]
    many, number = counted(single, 2).removeprefix("two "), counted(single, len(found))
    be = "is" if len(found) == 1 else "are"
    ask = (
        f"how many {many} are there?",
        f"how many {many} does the {noun} have?",
        f"count the {many} in the {noun}.",
        f"what is the number of {many} in this {noun}?",
        f"count the {many} and say where they are.",
        f"how many {many} can you see, and what are they?",
    )[choice.wording]
    tail = "."
    if choice.wording == 4 and found:
        tail = ": " + listing(["in the " + PLACE_NAMES[0][item.place] for item in found]) + "."
    if choice.wording == 5 and found:
        tail = ", namely " + listing([article(name(item)) for item in found]) + "."
    answer = (
        f"there {be} {number}.",
        f"the {noun} has {number}.",
        f"I count {number} in the {noun}.",
        f"the number of {many} in this {noun} is {number.split()[0].replace('no', 'zero')}.",
        f"there {be} {number}{tail}",
        f"I can see {number}{tail}",
    )[choice.wording]
    extra: tuple[str, ...] = ()
    if choice.wording == 4:
        extra = tuple(PLACE_NAMES[0][item.place] for item in found)
    if choice.wording == 5:
        extra = tuple(name(item) for item in found)
    return ask, answer, ((number if choice.wording != 3 else number.split()[0].replace("no", "zero")), *extra)


def _colour(scene: Scene, choice: _Choice, rng: random.Random) -> Short | None:
    often = Counter(item.shape for item in scene.items)
    single = [item for item in scene.items if often[item.shape] == 1]
    if not single:
        return None
    item = rng.choice(single)
    thing, noun, where = item.shape, choice.noun, PLACE_NAMES[0][item.place]
    ask = (
        f"what color is the {thing}?",
        f"what is the color of the {thing} in the {noun}?",
        f"which color does the {thing} have?",
        f"name the color of the {thing}.",
        f"what color and size is the {thing}?",
        f"what color is the {thing}, and where is it?",
    )[choice.wording]
    answer = (
        f"the {thing} is {item.colour}.",
        f"the color of the {thing} in the {noun} is {item.colour}.",
        f"the {thing} has the color {item.colour}.",
        f"{item.colour} is the color of the {thing}.",
        f"the {thing} is {item.colour} and {item.size}.",
        f"the {thing} is {item.colour}, and it {VERBS[item.shape]} in the {where}.",
    )[choice.wording]
    extra = {4: (item.size,), 5: (where,)}.get(choice.wording, ())
    return ask, answer, (item.colour, *extra)


def _relation(first: Item, second: Item) -> str:
    rows = "" if first.row == second.row else "above" if first.row < second.row else "below"
    columns = "" if first.column == second.column else "left of" if first.column < second.column else "right of"
    return " and ".join(filter(None, (rows, columns)))


def _compare(scene: Scene, choice: _Choice, rng: random.Random) -> Short | None:
    if len(scene.items) < 2:
        return None
    first, second = rng.sample(scene.items, 2)
    one, two, relation = f"the {name(first)}", f"the {name(second)}", _relation(first, second)
    larger, same = first.size == "large" and second.size == "small", first.size == second.size
    ask = (
        f"is {one} larger than {two}?",
        f"which is larger, {one} or {two}?",
        f"how does {one} compare in size with {two}?",
        f"where is {one} relative to {two}?",
        f"is {one} above {two}?",
        f"is {one} left of {two}?",
    )[choice.wording]
    big, little = (one, two) if larger else (two, one)
    if choice.wording == 0:
        no = f"no, both are {first.size}." if same else f"no, {one} is small and {two} is large."
        return ask, f"yes, {one} is larger than {two}." if larger else no, ("yes" if larger else "no",)
    if choice.wording == 1:
        fact = f"both are {first.size}" if same else f"{big} is larger"
        return ask, f"neither, {fact}." if same else f"{fact} than {little}.", (fact,)
    if choice.wording == 2:
        fact = f"as {first.size} as" if same else "larger than" if larger else "smaller than"
        return ask, f"{one} is {fact} {two}.", (fact,)
    if choice.wording == 3:
        return ask, f"{one} is {relation} {two}.", (f"is {relation} the",)
    wanted = "above" if choice.wording == 4 else "left of"
    if wanted in relation:
        return ask, f"yes, {one} is {wanted} {two}.", ("yes",)
    return ask, f"no, {one} is {relation} {two}.", ("no", f"is {relation} the")


def _exist(scene: Scene, choice: _Choice, rng: random.Random) -> Short:
    item = rng.choice(scene.items)
    colour, shape, noun = item.colour, item.shape, choice.noun
    if rng.random() < 0.5:
        colour, shape = rng.choice(((rng.choice(list(COLOURS)), shape), (colour, rng.choice(SHAPES))))
    thing = article(f"{colour} {shape}")
    found = next((other for other in scene.items if (other.colour, other.shape) == (colour, shape)), None)
    ask = (
        f"is there {thing} in the {noun}?",
        f"can you see {thing}?",
        f"does the {noun} contain {thing}?",
        f"do you see {thing} anywhere in this {noun}?",
        f"is {thing} shown?",
        f"I am looking for {thing}. Is there one?",
    )[choice.wording]
    if found is not None:
        where = PLACE_NAMES[0][found.place]
        answer = (
            f"yes, there is {thing} in the {where}.",
            f"yes, I can see {thing}. It {VERBS[shape]} in the {where}.",
            f"yes, the {noun} contains {thing}.",
            f"yes, I see {article(name(found, size=True))} in the {where} of this {noun}.",
            f"yes, {thing} is shown in the {where}.",
            f"yes, there is one in the {where}.",
        )[choice.wording]
        return ask, answer, ("yes",) if choice.wording == 2 else ("yes", where)
    alike = [other for other in scene.items if other.shape == shape or other.colour == colour]
    hint = f", but there is {article(name(alike[0]))}" if alike else ""
    thing = thing.split(" ", 1)[1]
    answer = (
        f"no, there is no {thing} in the {noun}{hint}.",
        f"no, I cannot see any {thing}{hint}.",
        f"no, the {noun} contains no {thing}{hint}.",
        f"no, I see no {thing} in this {noun}{hint}.",
        f"no {thing} is shown{hint}.",
        f"no, there is none{hint}.",
    )[choice.wording]
    return ask, answer, ("no", *([name(alike[0])] if alike else []))


_SHORT: dict[str, Callable[[Scene, _Choice, random.Random], Short | None]] = {
    "place": _place,
    "row": _row,
    "where": _where,
    "count": _count,
    "colour": _colour,
    "compare": _compare,
    "exist": _exist,
}


def _held_out(*choices: object) -> bool:
    return zlib.crc32(repr(choices).encode()) % 8 == 0


def _describe(scene: Scene, rng: random.Random, split: Split) -> Turn:
    while True:
        choice = tuple(rng.randrange(count) for count in describe.CHOICES)
        if _held_out("describe", *choice) == (split == "test"):
            return Turn(
                describe.question(choice), describe.answer(choice, scene), "describe", describe.facts(choice, scene)
            )


def _short_choice(kind: str, rng: random.Random, split: Split) -> _Choice:
    while True:
        choice = _Choice(rng.randrange(len(_LEADS)), rng.randrange(6), rng.choice(NOUNS), rng.randrange(2))
        if _held_out(kind, choice.lead, choice.wording, choice.noun, choice.naming) == (split == "test"):
            return choice


def ask(scene: Scene, rng: random.Random, split: Split, kind: str | None = None) -> Turn:
    """One question about ``scene``, of ``kind`` (one of KINDS) or of a kind drawn by weight, worded as ``split`` may
    word it.
    """
    while True:
        # The kind is drawn before the wording, so that both splits mix the kinds alike.
        drawn = kind or rng.choices(KINDS, _WEIGHTS)[0]
        if drawn == "describe":
            return _describe(scene, rng, split)
        choice = _short_choice(drawn, rng, split)
        short = _SHORT[drawn](scene, choice, rng)
        if short is None:
            if kind:
                raise ValueError(f"This scene allows no question of kind {kind!r}.")
            continue
        question, answer, facts = short
        lead, reply = (text.format(noun=choice.noun) for text in _LEADS[choice.lead])
        if not reply.endswith(", "):
            answer = capital(answer)
        if not lead.endswith(": "):
            question = capital(question)
        return Turn(lead + question, reply + answer, drawn, facts)
