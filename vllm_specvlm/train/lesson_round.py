"""A round of lessons: the target reads or answers a pool of conversations, then the head visits each a few times.

The pool is a function of (seed, round, rank) and the order of visits one of (seed, round, visit, rank): a run that
is killed in the middle of a round makes the same pool again and goes on in the same order. Nothing is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from vllm_specvlm.train import memory
from vllm_specvlm.train.conversation import Split, choose_asked
from vllm_specvlm.train.encoder import Encoded
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.recipe import AnswersRecipe, Recipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target

Tell = Callable[[float, str], None]
"""Share done, 0 to 1, and what is being done."""

_BUCKET = 8
"""Batches that are sorted by length together: less padding, and still random company."""
_TRIES = 100
_STRIDE = 64
"""Tokens by which prompts that are answered together may differ in length."""


def prepare(
    target: Target,
    sources: Sources,
    answers: AnswersRecipe,
    count: int,
    key: str,
    *,
    split: Split = "train",
    longest: int = 2048,
    tell: Tell = lambda share, doing: None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Lesson]:
    """`count` lessons that hold something to draft, decided by `key`.

    Args:
        target: reads and answers.
        sources: of conversations.
        answers: who answers.
        count: lessons wanted.
        key: of everything random.
        split: of the sources.
        longest: tokens at which conversations are cut.
        tell: hears how far it is.
        say: hears of recorded conversations that cannot be encoded, in whose place others are drawn.

    Raises:
        RecipeError: hardly any conversation has something to draft, or one that was not recorded cannot be encoded.
    """
    lessons: list[Lesson | None] = [None] * count
    refused, reason = 0, ""
    for attempt in range(_TRIES):
        missing = [at for at, lesson in enumerate(lessons) if lesson is None]
        if not missing:
            break
        made: dict[int, Encoded] = {}
        for at in missing:
            rng = random.Random(f"{key}/{at}/{attempt}")
            conversation = choose_asked(sources.draw(rng, split), rng, answers.own)
            try:
                encoded = _cut(target.encoder.encode(conversation), longest)
            except Exception as error:  # templates, tokenizers and Pillow raise all kinds of what strangers sent
                if not conversation.recorded:
                    raise
                refused, reason = refused + 1, (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
                continue
            if encoded is not None:
                made[at] = encoded
        done = 0
        for places in _batches(made, answers.batch):
            tell((count - len(missing) + done) / count, f"the target {'answers' if made[places[0]].asks else 'reads'}")
            some = [made[at] for at in places]
            if some[0].asks:
                rng = random.Random(f"{key}/{attempt}/{places[0]}/sample")
                drawn = [answers.temperature if rng.random() < answers.sampled else 0.0 for _ in places]
                found = target.answer(some, answers.longest, drawn, rng.getrandbits(40))
            else:
                found = target.read(some)
            for at, lesson in zip(places, found, strict=True):
                lessons[at] = lesson if lesson.tokens else None
            done += len(places)
            memory.give_back()
    told = f"{refused} times a recorded conversation could not be encoded (the last time: {reason})" if refused else ""
    if told:
        say(f"{told}; others were drawn.")
    found_all = [lesson for lesson in lessons if lesson is not None]
    if len(found_all) < count:
        raise RecipeError(
            f"After {_TRIES} tries {count - len(found_all)} of {count} conversations have an answer of fewer than two "
            f"tokens, or pictures longer than training.longest{told and f', and {told}'}: give other data or a greater "
            "longest."
        )
    return found_all


def _batches(made: dict[int, Encoded], size: int) -> list[list[int]]:
    """Places of conversations that the target takes at once: of like length, and those that ask by themselves."""
    batches = []
    for asks in (False, True):
        places = [at for at, each in made.items() if each.asks == asks]
        # Of prompts of about one length, those of answers of about one length go together.
        places.sort(key=lambda at: (len(made[at].ids) // (_STRIDE if asks else 1), made[at].expected, at))
        batches += [places[start : start + size] for start in range(0, len(places), size)]
    return batches


def _cut(encoded: Encoded, longest: int) -> Encoded | None:
    """Cut to `longest` ids; None where a question or a picture would be cut."""
    if len(encoded.ids) <= longest:
        return encoded
    if encoded.asks or any(start + length > longest for start, length in encoded.pictures):
        return None
    encoded.ids, encoded.spoken = encoded.ids[:longest], encoded.spoken[:longest]
    return encoded


def order(lessons: Sequence[Lesson], recipe: Recipe, key: str) -> list[list[int]]:
    """Places of the lessons of every step of a round, `visits` times through all of them."""
    size = recipe.training.batch
    steps: list[list[int]] = []
    for visit in range(recipe.training.visits):
        rng = random.Random(f"{key}/visit/{visit}")
        places = list(range(len(lessons)))
        rng.shuffle(places)
        batches = []
        for start in range(0, len(places), _BUCKET * size):
            bucket = sorted(places[start : start + _BUCKET * size], key=lambda at: (lessons[at].tokens, at))
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        rng.shuffle(batches)
        steps += batches
    return steps
