"""The data of a recipe: its sources, mixed by weight."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train.conversation import Conversation, Source, Split
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.jsonl_source import JsonlSource
from vllm_specvlm.train.recipe import DataRecipe
from vllm_specvlm.train.reference_source import ReferenceSource, ReferenceTalk
from vllm_specvlm.train.scenes_source import ScenesSource
from vllm_specvlm.train.traffic_source import TrafficSource

BUILTIN: dict[str, Callable[[], Source]] = {
    "specvlm/reference": ReferenceSource,
    "specvlm/reference-talk": ReferenceTalk,
}
SCENES = "specvlm/scenes"
"""Its pictures are too many to come along."""


class Sources:
    """All sources of a recipe as one."""

    def __init__(self, recipes: Sequence[DataRecipe], folder: Path) -> None:
        """Relative paths are relative to `folder`, the recipe's. Raises RecipeError for a source that is none."""
        self._weights = [each.weight for each in recipes]
        self._sources = [_open(each, folder) for each in recipes]
        self._names = [each.source for each in recipes]

    def draw(self, rng: random.Random, split: Split) -> Conversation:
        """A conversation of a random source."""
        return rng.choices(self._sources, self._weights)[0].draw(rng, split)

    def keep_only(self, target: TargetId, special: Collection[str]) -> list[str]:
        """Leave out what servers recorded and the target cannot learn from (see `TrafficSource.keep_only`).

        Returns what was left out, in a sentence for each source. Raises RecipeError if a source has nothing else.
        """
        told = []
        for name, source in zip(self._names, self._sources, strict=True):
            if isinstance(source, TrafficSource):
                source.keep_only(target, special)
                if source.damaged or source.foreign or source.special:
                    told.append(
                        f"Of the log '{name}' {source.damaged} files are damaged, {source.foreign} exchanges are of "
                        f"another target, and {source.special} have special tokens in their text; they are left out."
                    )
                if source.split_missing is not None:
                    told.append(
                        f"All chats of the log '{name}' fall on one side of the split by first questions: what is held "
                        "out of it is what is trained on, so held-out figures will look better than they are."
                    )
        return told

    def digests(self) -> dict[str, str]:
        """By source: what it holds. Folders are left out of the names."""
        return {
            name if name in (*BUILTIN, SCENES) else Path(name).name: source.digest()
            for name, source in zip(self._names, self._sources, strict=True)
        }


def _open(recipe: DataRecipe, folder: Path) -> Source:
    if recipe.source in BUILTIN:
        return BUILTIN[recipe.source]()
    images = folder / Path(recipe.images).expanduser() if recipe.images else None
    if recipe.source == SCENES:
        return ScenesSource(images or folder)
    if recipe.source.startswith("specvlm/"):
        there = ", ".join((*BUILTIN, SCENES))
        raise RecipeError(f"There is no data source '{recipe.source}'; those that come along are {there}.")
    path = folder / Path(recipe.source).expanduser()
    if path.is_dir():
        return TrafficSource(path)
    return JsonlSource(path, images)
