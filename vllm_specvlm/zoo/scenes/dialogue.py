"""Conversations of three to five turns about one scene, whose later questions lean on earlier ones."""

from __future__ import annotations

import random

from vllm_specvlm.zoo.scenes import describing
from vllm_specvlm.zoo.scenes.canvas import NUMBERS, Split, wording
from vllm_specvlm.zoo.scenes.describing import Scene
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.turn import Sample, Turn
from vllm_specvlm.zoo.wording import capital, listing

_HELLO = (
    "Hi! What is this a picture of?",
    "Hello, can you see the picture?",
    "Good morning. What do I have here?",
    "Hey there, what is going on in this image?",
    "Hi, I found this picture. What is it?",
    "Hello! What did I send you?",
)
_FIRST = (
    "What is {place}?",
    "Which thing do you see {place}?",
    "And {place}?",
    "Let us look {place}. What is there?",
    "So what would be {place}?",
)
_MORE = (
    "Tell me more about it.",
    "What else do you know about it?",
    "Interesting. Go on.",
    "Can you say more?",
    "Please tell me a bit more about that one.",
)
_NEXT = (
    "And what is {place}?",
    "What about the thing {place}?",
    "Now look {place}. What do you see?",
    "Fine. Which thing is {place}?",
    "Next, what could that be {place}?",
)
_COUNT = (
    "How many things are there in total?",
    "So how many things is that?",
    "How many things does the picture have?",
    "Remind me, how many things did we see?",
    "What is the number of things, all in all?",
)
_REMEMBER = (
    "Which thing did I ask about first?",
    "What did we talk about at the beginning?",
    "Do you remember what I asked about first?",
    "What was the first thing we looked at?",
    "Which one did we begin with?",
)
_THANKS = (
    "Thank you!",
    "Thanks, that helps.",
    "Great, thank you very much.",
    "Wonderful. Thanks a lot!",
    "That was kind of you.",
)


def _turns(scene: Scene, rng: random.Random, split: Split) -> tuple[Turn, ...]:
    style = scene.style
    things = tuple(item.concept.name for item in scene.items)
    hello = (
        f"Hello! It is a picture of {scene.things} {scene.ground.where}.",
        f"Hi! You have a scene {scene.ground.where} here, with {scene.things}.",
        f"Sure. It shows {scene.things}, and it plays {scene.ground.where}.",
    )[style % 3]
    made = [Turn(wording(rng, split, _HELLO), hello, scene.facts)]
    order = rng.sample(scene.items, len(scene.items))
    first = order[0]
    made.append(
        Turn(
            wording(rng, split, _FIRST).format(place=first.place),
            (f"{capital(first.place)} there is {first.a}.", f"That is {first.a}.")[style % 2],
            (first.concept.name,),
        )
    )
    if rng.random() < 0.5:
        known = f"{first.concept.name}|{first.concept.plural}"
        made.append(Turn(wording(rng, split, _MORE), " ".join(first.concept.remarks), (known,)))
    if len(order) > 1:
        second = order[1]
        made.append(
            Turn(
                wording(rng, split, _NEXT).format(place=second.place),
                (f"{capital(second.place)} I see {second.a}.", f"There is {second.a}.", f"It is {second.a}.")[
                    style % 3
                ],
                (second.concept.name,),
            )
        )
        if rng.random() < 0.5:
            text = (f"First you asked about the {first.concept.name}.", f"It was the {first.concept.name}.")[style % 2]
            made.append(Turn(wording(rng, split, _REMEMBER), text, (first.concept.name,)))
    if rng.random() < 0.5:
        count = NUMBERS[len(things)]
        text = f"There {'is' if len(things) == 1 else 'are'} {count}: {listing([item.a for item in scene.items])}."
        made.append(Turn(wording(rng, split, _COUNT), text, (count,)))
    if rng.random() < 0.3:
        made.append(Turn(wording(rng, split, _THANKS), "You are welcome! Ask me more if you like.", ("welcome",)))
    return tuple(made)


def sample(sources: Sources, rng: random.Random, split: Split) -> Sample:
    """A scene with one conversation."""
    scene, canvas = describing.compose(sources, rng, split)
    return Sample("dialogue", canvas.finish(rng), tuple(canvas.marks), _turns(scene, rng, split), chain=True)
