"""Long answers: describe the whole picture.

Five choices in the question fix five choices in the answer: courtesy (its lead), the verb (opening sentence and shape
of the clauses), the noun (echoed, and the closing sentence), the amount of detail, and the order. Verbs of place and
the closing also depend on the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_specvlm.zoo.pictures import PLACES, Item, Scene
from vllm_specvlm.zoo.wording import NOUNS, PLACE_NAMES, VERBS, article, capital, counted, listing, name

Clause = Callable[[Item, str, bool], str]


def _thing_first(item: Item, place: str, size: bool) -> str:
    return f"{article(name(item, size=size))} {VERBS[item.shape]} in the {place}"


def _place_first(item: Item, place: str, size: bool) -> str:
    return f"in the {place} there is {article(name(item, size=size))}"


def _place_holds(item: Item, place: str, size: bool) -> str:
    return f"the {place} holds {article(name(item, size=size))}"


def _place_verb(item: Item, place: str, size: bool) -> str:
    return f"in the {place} {VERBS[item.shape]} {article(name(item, size=size))}"


def _with_at(item: Item, place: str, size: bool) -> str:
    return f"{article(name(item, size=size))} at the {place}"


def _entry(item: Item, place: str, size: bool) -> str:
    return f"{place}: {name(item, size=size)}"


@dataclass(frozen=True)
class _Verb:
    ask: str  # with {noun}; fits after "could you"
    opening: str  # with {noun} and {count}
    clause: Clause
    joint: str  # between clauses; the first letter after a full stop is raised
    naming: int  # which of PLACE_NAMES


_VERB_TABLE: tuple[_Verb, ...] = (
    _Verb("describe the {noun}", "The {noun} shows {count}.", _place_first, ". ", 0),
    _Verb("describe this {noun}", "This {noun} shows {count}.", _thing_first, ", and ", 0),
    _Verb("tell me what is in the {noun}", "There {be} {count} in the {noun}.", _thing_first, ". ", 0),
    _Verb("tell me about the {noun}", "The {noun} has {count}.", _thing_first, "; ", 1),
    _Verb("explain what the {noun} shows", "The {noun} consists of {count}.", _place_holds, ". ", 1),
    _Verb("say what you see in the {noun}", "I see {count} in the {noun}.", _place_verb, ", then ", 0),
    _Verb("list everything in the {noun}", "{count}:", _entry, "; ", 0),
    _Verb("write a caption for the {noun}", "A {noun} with {count}:", _with_at, ", ", 1),
    _Verb("go through the {noun}", "Going through the {noun}, I find {count}.", _place_holds, ", while ", 0),
    _Verb("give an account of the {noun}", "What the {noun} shows is {count}.", _place_verb, ". Next, ", 1),
)
_COURTESIES: tuple[tuple[str, str], ...] = (  # question with {ask}, lead of the answer
    ("{Ask}.", ""),
    ("Please {ask}.", "Sure. "),
    ("Could you {ask}?", "Of course. "),
    ("Can you {ask} for me?", "Yes. "),
    ("Hello! {Ask}, please.", "Hello! "),
    ("I would like you to {ask}.", "All right. "),
)
_DETAILS: tuple[tuple[str, bool, bool], ...] = (  # suffix, sizes, places
    ("", False, True),
    (" in detail", True, True),
    (" with all sizes", True, True),
    (" briefly", False, False),
)
_ORDERS: tuple[tuple[str, str], ...] = (
    ("", "reading"),
    (" from bottom to top", "reverse"),
    (" from left to right", "columns"),
)
CHOICES = (len(_COURTESIES), len(_VERB_TABLE), len(NOUNS), len(_DETAILS), len(_ORDERS))


def question(choice: Sequence[int]) -> str:
    """The question that the five choices spell."""
    courtesy, verb, noun, detail, order = choice
    ask = _VERB_TABLE[verb].ask.format(noun=NOUNS[noun]) + _DETAILS[detail][0] + _ORDERS[order][0]
    return _COURTESIES[courtesy][0].format(ask=ask, Ask=capital(ask))


def _ordered(scene: Scene, order: str) -> list[Item]:
    if order == "reverse":
        return list(reversed(scene.items))
    if order == "columns":
        return sorted(scene.items, key=lambda item: (item.column, item.row))
    return list(scene.items)


def _closing(scene: Scene, noun: int, names: tuple[str, ...]) -> str:
    if noun == 1:
        colours = list(dict.fromkeys(item.colour for item in scene.items))
        return f" The {'color is' if len(colours) == 1 else 'colors are'} {listing(colours)}."
    if noun == 2:
        arranged = {"free": "scattered", "grid": "arranged in a grid", "diagonal": "on a diagonal"}
        words = arranged.get(scene.layout, f"arranged in a {scene.layout}")
        return "" if len(scene.items) < 3 else f" The shapes are {words}."
    if noun == 3:
        empty = [place for place in range(PLACES) if scene.at(place) is None]
        return f" Nothing is in the {names[empty[0]]}."
    return ""


def answer(choice: Sequence[int], scene: Scene) -> str:
    """What the five choices of the question make of ``scene``."""
    courtesy, which, noun, detail, order = choice
    verb, (_, sizes, places) = _VERB_TABLE[which], _DETAILS[detail]
    names = PLACE_NAMES[verb.naming]
    count = len(scene.items)
    opening = verb.opening.format(noun=NOUNS[noun], count=counted("shape", count), be="is" if count == 1 else "are")
    items = _ordered(scene, _ORDERS[order][1])
    lead = _COURTESIES[courtesy][1] + capital(opening) + " "
    if not places:
        return lead + capital(listing([article(name(item, size=sizes)) for item in items])) + "."
    clauses = [verb.clause(item, names[item.place], sizes) for item in items]
    new_sentence = verb.joint == ". "
    body = verb.joint.join(capital(clause) if new_sentence else clause for clause in clauses)
    return lead + capital(body) + "." + _closing(scene, noun, names)


def facts(choice: Sequence[int], scene: Scene) -> tuple[str, ...]:
    """Strings that a right answer contains: every shape with its colour (and size, and place, where asked for)."""
    _, which, _, detail, _ = choice
    verb, (_, sizes, places) = _VERB_TABLE[which], _DETAILS[detail]
    if not places:
        return tuple(name(item, size=sizes) for item in scene.items)
    return tuple(verb.clause(item, PLACE_NAMES[verb.naming][item.place], sizes) for item in scene.items)
