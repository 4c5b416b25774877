"""All six tasks: a sample of any of them, and the words that marks use."""

from __future__ import annotations

import random
from collections.abc import Callable

from vllm_specvlm.zoo.scenes import charting, counting, describing, dialogue, reading, short_answers
from vllm_specvlm.zoo.scenes.canvas import COLOURS, Split
from vllm_specvlm.zoo.scenes.concepts import CONCEPTS
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import TASKS, Sample

DATA_VERSION = 3  # raise when drawing or wording changes: the trained parts were made with version 1

_SAMPLERS: dict[str, Callable[[Sources, random.Random, Split], Sample]] = {
    "describe": describing.sample,
    "read": reading.sample,
    "chart": charting.sample,
    "count": counting.sample,
    "vqa": short_answers.sample,
    "dialogue": dialogue.sample,
}
# Easy-vqa's three shapes need fewer pictures than sixty kinds of things.
_WEIGHTS = {"describe": 5, "read": 5, "chart": 4, "count": 5, "vqa": 2, "dialogue": 3}

_GROUND_WORDS = ("sky", "grass", "sand", "sea", "snow", "night", "ground", "wall", "floor", "road")
MAIN_WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            "empty",
            *(concept.name for concept in CONCEPTS),
            *_GROUND_WORDS,
            *map(str, range(10)),
            *reading.WORDS,
            *charting.WORDS,
            "sign",
            *short_answers.SHAPES,
            "shape",
        ]
    )
)
SIDE_WORDS: tuple[str, ...] = tuple(dict.fromkeys(["", *COLOURS, *short_answers.COLOURS, *counting.COUNT_WORDS[2:]]))


def sample(sources: Sources, rng: random.Random, split: Split, task: str | None = None) -> Sample:
    """A picture with questions of ``task``, or of a random task."""
    if task is None:
        task = rng.choices(TASKS, [_WEIGHTS[name] for name in TASKS])[0]
    return _SAMPLERS[task](sources, rng, split)
