"""The zoo's six tasks about composed pictures, drawn from prepared sources."""

from __future__ import annotations

import random
from pathlib import Path

from vllm_specvlm.train.conversation import Conversation, Split, Turn
from vllm_specvlm.train.errors import RecipeError


class ScenesSource:
    """`specvlm/scenes`: endless pictures of the tasks that `zoo.scenes` draws, a question or a dialogue about each.

    Split `test` is theirs for validation: the committed test set has pictures and phrasings of its own.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: what `python -m vllm_specvlm.zoo.scenes.sources` prepared. Raises RecipeError if it is not."""
        from vllm_specvlm.zoo.scenes.sources import Sources

        if not (folder / "sprites" / "index.json").exists():
            raise RecipeError(
                f"The source specvlm/scenes needs its pictures, and '{folder}' has none; run python -m "
                "vllm_specvlm.zoo.scenes.sources --work DIR and write DIR as the source's 'images'."
            )
        self._sources = Sources(folder)

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """See `Source`."""
        from vllm_specvlm.zoo.scenes.tasks import sample

        made = sample(self._sources, rng, "train" if split == "train" else "validation")
        turns = made.turns if made.chain else (rng.choice(made.turns),)
        first = Turn((None, turns[0].question), turns[0].answer)
        return Conversation((made.picture,), (first, *(Turn((each.question,), each.answer) for each in turns[1:])))

    def digest(self) -> str:
        """The version of its drawings and wordings."""
        from vllm_specvlm.zoo.scenes.tasks import DATA_VERSION

        return f"version {DATA_VERSION}"
