"""The zoo's questions about pictures that it draws, and plain questions without a picture."""

from __future__ import annotations

import hashlib
import random
from functools import cache

from vllm_specvlm.train.conversation import Conversation, Split, Turn


class ReferenceSource:
    """`specvlm/reference`: endless pictures, each with several questions and their right answers."""

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """See `Source`."""
        from vllm_specvlm.zoo.conversation import sample_turns
        from vllm_specvlm.zoo.pictures import draw, sample_scene

        scene = sample_scene(rng, split)
        picture = draw(scene, rng)
        turns = sample_turns(scene, rng, split)
        first = Turn((None, turns[0].question), turns[0].answer)
        return Conversation((picture,), (first, *(Turn((each.question,), each.answer) for each in turns[1:])))

    def digest(self) -> str:
        """The version of its drawings and wordings."""
        from vllm_specvlm.zoo.pictures import DATA_VERSION

        return f"version {DATA_VERSION}"


class ReferenceTalk:
    """`specvlm/reference-talk`: plain questions, answered by the target itself."""

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """See `Source`."""
        return Conversation((), (Turn((rng.choice(_plain(split)),), None),))

    def digest(self) -> str:
        """Of all its questions."""
        text = "\n".join((*_plain("train"), *_plain("test")))
        return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@cache
def _plain(split: Split) -> tuple[str, ...]:
    from vllm_specvlm.zoo.chat import questions

    return tuple(questions(split))
