"""Scenes of one to four things on a ground: captions, lists, descriptions, short stories."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vllm_specvlm.zoo.scenes.canvas import NUMBERS, SIDE, Canvas, Split, wording
from vllm_specvlm.zoo.scenes.concepts import BY_NAME, Concept
from vllm_specvlm.zoo.scenes.grounds import GROUNDS, Ground
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import article, capital, listing

# Where things may stand: names of the places and their centres, as shares of the side.
_LAYOUTS: tuple[tuple[tuple[str, float, float], ...], ...] = (
    (("in the middle", 0.5, 0.6),),
    (("on the left", 0.26, 0.6), ("on the right", 0.74, 0.6)),
    (("at the top", 0.5, 0.26), ("at the bottom", 0.5, 0.76)),
    (("on the left", 0.18, 0.62), ("in the middle", 0.5, 0.62), ("on the right", 0.82, 0.62)),
    (
        ("at the top left", 0.27, 0.26),
        ("at the top right", 0.73, 0.26),
        ("at the bottom left", 0.27, 0.75),
        ("at the bottom right", 0.73, 0.75),
    ),
)
_SIZES = {1: (130, 230), 2: (100, 150), 3: (80, 106), 4: (90, 140)}  # pixels, by the number of things


@dataclass(frozen=True)
class Item:
    """A thing of a scene and its place ("on the left")."""

    concept: Concept
    place: str

    @property
    def a(self) -> str:
        """ "a cat"."""
        return article(self.concept.name)


@dataclass(frozen=True)
class Scene:
    """Different things in reading order, on a ground."""

    ground: Ground
    items: tuple[Item, ...]

    @property
    def things(self) -> str:
        """ "a cat, a dog and a tree"."""
        return listing([item.a for item in self.items])

    @property
    def style(self) -> int:
        """A number that the picture fixes: it selects between wordings, so that they can be told from the picture."""
        return GROUNDS.index(self.ground) + len(self.items)

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of all things and of the ground."""
        return (*(item.concept.name for item in self.items), self.ground.name)


def compose(sources: Sources, rng: random.Random, split: Split) -> tuple[Scene, Canvas]:
    """A random scene drawn with the sprites of ``split``."""
    ground = rng.choice(GROUNDS)
    layout = rng.choice(_LAYOUTS)
    names = rng.sample(sources.concepts(split), len(layout))
    canvas = ground.draw(rng)
    items = []
    for name, (place, x, y) in zip(names, layout, strict=True):
        side = rng.uniform(*_SIZES[len(layout)])
        jitter = 0.03 * SIDE
        sprite = sources.sprite(rng, name, split, side)
        canvas.paste(sprite, x * SIDE + rng.uniform(-jitter, jitter), y * SIDE + rng.uniform(-jitter, jitter), name)
        items.append(Item(BY_NAME[name], place))
    return Scene(ground, tuple(items)), canvas


_CAPTION = (
    "Give a short caption.",
    "Write a caption for this picture.",
    "Describe the picture in one short sentence.",
    "What would be a good title for this?",
    "Sum up the picture in a few words.",
    "Caption this image briefly.",
)
_LIST = (
    "What do you see?",
    "What is in this picture?",
    "List the things in the picture.",
    "Which things can be seen here?",
    "What does the image contain?",
    "Tell me which things you can make out.",
)
_DETAIL = (
    "Describe the picture in detail.",
    "Please describe the scene.",
    "What does this picture show? Be precise.",
    "Explain what can be seen, and where.",
    "Tell me everything about this image.",
    "I cannot see the picture. Can you describe it for me?",
    "Give me a full description of this scene, please.",
)
_STORY = (
    "Write a short story about this picture.",
    "Tell a story about what you see.",
    "Make up a little tale about this scene.",
    "Can you invent a story for this image?",
    "Tell me a bedtime story about this picture.",
    "Please write a small story based on the picture.",
)
_WHERE = (
    "Where is the picture taken?",
    "What kind of place is this?",
    "What is the setting of the scene?",
    "What is in the background?",
    "Which surroundings does the image show?",
)
_ABOUT = (
    "What is {place}? Tell me something about it.",
    "Which thing is {place}, and what do you know about it?",
    "Name the thing {place} and say something interesting about it.",
    "Say what you see {place} and give me a fact about it.",
    "Look at what is {place}. What is it, and what can you tell me about it?",
    "Can you tell me what can be found {place}, and a little more about it?",
)


def _caption(scene: Scene) -> str:
    where = scene.ground.where
    return (
        f"{capital(scene.things)} {where}.",
        f"{capital(where)}: {scene.things}.",
        f"A scene {where} with {scene.things}.",
    )[scene.style % 3]


def _list(scene: Scene) -> str:
    return (
        f"I can see {scene.things}.",
        f"The picture contains {scene.things}.",
        f"There {'is' if len(scene.items) == 1 else 'are'} {scene.things} in the picture.",
        f"It shows {scene.things}.",
    )[scene.style % 4]


def _clause(item: Item, index: int) -> str:
    concept = item.concept
    ways = (
        f"{capital(item.place)} there is {item.a}. {concept.remarks[index % 2]}",
        f"{capital(item.a)} {concept.stance} {item.place}.",
        f"{capital(item.place)} {concept.stance} {item.a}."
        if " " not in concept.stance
        else f"{capital(item.place)} one finds {item.a}.",
    )
    return ways[("animal", "food", "plant", "vehicle", "object").index(concept.group) % 3]


def _detail(scene: Scene) -> str:
    count = NUMBERS[len(scene.items)] + (" thing" if len(scene.items) == 1 else " things")
    opening = (
        f"The picture shows {count} {scene.ground.where}.",
        f"This is a scene {scene.ground.where} with {count} in it.",
        f"We are {scene.ground.where}, and there {'is' if len(scene.items) == 1 else 'are'} {count} to see.",
    )[scene.style % 3]
    body = " ".join(_clause(item, scene.style + index) for index, item in enumerate(scene.items))
    return f"{opening} {body} {scene.ground.mood}"


def _story(scene: Scene) -> str:
    first, last = scene.items[0].concept, scene.items[-1].concept
    opening = (
        f"Once upon a time there was {article(first.name)} {scene.ground.where}.",
        f"One day {article(first.name)} was all alone {scene.ground.where}.",
        f"Long ago, {scene.ground.where}, there was {article(first.name)} that nobody knew.",
    )[scene.style % 3]
    if len(scene.items) == 1:
        middle = f"{first.remarks[0]} But nobody came to see it, and so it waited for a friend."
    else:
        others = listing([item.a for item in scene.items[1:]])
        middle = f"{first.remarks[0]} Then it met {others}. {last.remarks[1]}"
    ending = (
        "In the end they were all happy together.",
        "And when the night came, everybody went home.",
    )[len(scene.items) % 2]
    return f"{opening} {middle} {ending}"


def _where(scene: Scene) -> str:
    return (
        f"The scene is {scene.ground.where}. {scene.ground.mood}",
        f"It is a picture taken {scene.ground.where}.",
    )[scene.style % 2]


def _about(item: Item, style: int) -> str:
    first, second = item.concept.remarks
    return (
        f"That is {item.a}. {first} {second}",
        f"It is {item.a}. {second}",
        f"{capital(item.place)} you can see {item.a}. {first}",
    )[style % 3]


def turns(scene: Scene, rng: random.Random, split: Split) -> tuple[Turn, ...]:
    """One turn of every kind, in random order."""
    things = tuple(item.concept.name for item in scene.items)
    item = rng.choice(scene.items)
    about = wording(rng, split, _ABOUT).format(place=item.place)
    made = [
        Turn(wording(rng, split, _CAPTION), _caption(scene), scene.facts),
        Turn(wording(rng, split, _LIST), _list(scene), things),
        Turn(wording(rng, split, _DETAIL), _detail(scene), scene.facts),
        Turn(wording(rng, split, _STORY), _story(scene), things),
        Turn(wording(rng, split, _WHERE), _where(scene), (scene.ground.name,)),
        Turn(about, _about(item, scene.style), (item.concept.name,)),
    ]
    rng.shuffle(made)
    return tuple(made)


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """A scene with its questions."""
    scene, canvas = compose(sources, rng, split)
    return Sample("describe", canvas.finish(rng), tuple(canvas.marks), turns(scene, rng, split))
