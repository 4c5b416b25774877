"""A feature head as what a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from vllm_specvlm.compress.selection import Selection
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train import acceptance, learning
from vllm_specvlm.train.acceptance import Acceptance
from vllm_specvlm.train.learning import Figures
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.new_head import create
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import Recipe
from vllm_specvlm.train.target import Target


class HeadStudent:
    """See `Student`."""

    def create(self, recipe: Recipe, target: Target, lessons: Sequence[Lesson], folder: Path) -> FeatureHead:
        """See `new_head.create`."""
        return create(recipe.head, target, lessons, recipe.seed, folder)

    def begin_step(self, network: FeatureHead, share: float) -> None:
        """Selection explores for the first half of the run; its Gumbel temperature falls from 1 to 0.1."""
        for module in network.compressor.modules():
            if isinstance(module, Selection):
                module.tau, module.explore = 0.1**share, share < 0.5

    def learn(
        self,
        network: FeatureHead,
        target: Target,
        output_rows: Tensor,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        ranks: Ranks,
        precision: AbstractContextManager[Any],
    ) -> Figures:
        """See `learning.learn`."""
        return learning.learn(network, target, output_rows, lessons, recipe, ranks, precision)

    def measure(
        self,
        network: FeatureHead,
        target: Target,
        lessons: Sequence[Lesson],
        recipe: Recipe,
        precision: AbstractContextManager[Any],
    ) -> Acceptance:
        """See `acceptance.measure`."""
        return acceptance.measure(network, target, lessons, recipe.check.chain, recipe.training.batch, precision)

    def load(self, folder: Path) -> tuple[FeatureHead, TargetId]:
        """See `head_checkpoint.load`."""
        return head_checkpoint.load(folder)

    def save(self, folder: Path, network: FeatureHead, target: TargetId, provenance: Mapping[str, Any]) -> None:
        """See `head_checkpoint.save`."""
        head_checkpoint.save(folder, network, target, provenance)
