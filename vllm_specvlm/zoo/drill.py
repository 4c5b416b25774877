"""Drills: training-only conversations in which nearly every predicted token must be read off the picture.

Ordinary answers spend most of their tokens on wording, which is learnt first and without looking; a small model can
then stay blind for thousands of steps. A drill names places in random order and asks for what is there, or names things
and asks where they are. Only the parts to be read off the picture count in the loss.
"""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.conversation import Batch, Conversation, collate, prompt_ids
from vllm_specvlm.zoo.pictures import PLACES, Scene, draw, sample_scene
from vllm_specvlm.zoo.wording import PLACE_NAMES, name


def _entries(scene: Scene, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A question, and pairs of what is given and what must be said."""
    names = rng.choice(PLACE_NAMES)
    if rng.random() < 0.6:
        pairs = []
        for place in rng.sample(range(PLACES), PLACES):
            item = scene.at(place)
            pairs.append((f" {names[place]}:", " nothing;" if item is None else f" {name(item, size=True)};"))
        return "What is where?", pairs
    items = rng.sample(scene.items, len(scene.items))
    return "Where is what?", [(f" {name(item)}:", f" {item.size}, {names[item.place]};") for item in items]


def drill(tokenizer: PreTrainedTokenizerFast, scene: Scene, rng: random.Random) -> Conversation:
    """One drill about ``scene``."""
    question, pairs = _entries(scene, rng)
    ids = prompt_ids(tokenizer, question)
    spoken = [False] * len(ids)
    for given, wanted in pairs:
        for text, counts in ((given, False), (wanted, True)):
            more = tokenizer(text).input_ids
            ids += more
            spoken += [counts] * len(more)
    return Conversation(ids, spoken)


def drill_batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int) -> Batch:
    """``size`` drills, each about a picture of its own."""
    scenes = [sample_scene(rng, "train") for _ in range(size)]
    pictures = [draw(scene, rng) for scene in scenes]
    return collate(pictures, [drill(tokenizer, scene, rng) for scene in scenes])
