"""What a run trains, behind one face: a feature head, an early exit or a draft VLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from vllm_specvlm.draft.early_exit import EarlyExit
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train.acceptance import Acceptance
from vllm_specvlm.train.learning import Figures
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import Recipe
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.target import Target

N = TypeVar("N", bound=FeatureHead | EarlyExit | SmallVLM)


class Student(Protocol[N]):
    """A kind of network: how it begins, learns, is checked and kept."""

    def create(self, recipe: Recipe, target: Target, lessons: Sequence[Lesson], folder: Path) -> N:
        """Before the first step; `lessons` show what it will learn from, `folder` is the recipe's.

        Raises:
            RecipeError: the recipe asks for something that cannot be.
        """
        ...

    def begin_step(self, network: N, share: float) -> None:
        """So much of the run is over, 0 to 1."""
        ...

    def learn(
        self,
        network: N,
        target: Target,
        output_rows: Tensor,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        ranks: Ranks,
        precision: AbstractContextManager[Any],
    ) -> Figures:
        """Add one step's gradients to the parameters, summed over all processes: see `learning.learn`."""
        ...

    def measure(
        self,
        network: N,
        target: Target,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        precision: AbstractContextManager[Any],
    ) -> Acceptance:
        """Tokens per check on held-out lessons: see `acceptance.measure`."""
        ...

    def load(self, folder: Path) -> tuple[N, TargetId]:
        """A checkpoint. Raises ValueError if it is none."""
        ...

    def save(self, folder: Path, network: N, target: TargetId, provenance: Mapping[str, Any]) -> None:
        """Write one."""
        ...
