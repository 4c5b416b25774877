"""A head before its first step: new, or one that was trained before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.train.test_trainer import SMALL, make, tiny
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.new_head import create
from vllm_specvlm.train.recipe import HeadRecipe
from vllm_specvlm.train.target import Target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("trained")).run().folder


def test_it_goes_on_from_a_trained_head(trained: Path) -> None:
    before = head_checkpoint.load(trained)[0].state_dict()
    # Named relative to the recipe's folder.
    started = create(HeadRecipe(start=trained.name), tiny(), (), 1, trained.parent).state_dict()
    assert started.keys() == before.keys() and all(torch.equal(started[name], before[name]) for name in before)


def test_another_compressor_starts_anew_and_the_rest_goes_on(trained: Path) -> None:
    before = head_checkpoint.load(trained)[0].state_dict()
    head = create(HeadRecipe(start=str(trained), compressor=CompressorConfig("conv")), tiny(), (), 1)
    started = head.state_dict()
    assert head.config.compressor.kind == "conv" and any(name.startswith("compressor.") for name in started)
    assert all(torch.equal(started[name], before[name]) for name in before if not name.startswith("compressor."))


def test_training_goes_on(trained: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, head=HeadRecipe(start=str(trained)))
    head, _ = head_checkpoint.load(make(tmp_path, recipe).run().folder)
    before, _ = head_checkpoint.load(trained)
    assert torch.equal(head.vocabulary, before.vocabulary) and not torch.equal(head.fuse.weight, before.fuse.weight)


def test_heads_that_cannot_be_started_from(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[head\] start: There is no feature head at '.*/nothing'"):
        create(HeadRecipe(start="nothing"), tiny(), (), 1, tmp_path)
    other = Target(str(build("qwen2_5_vl")), torch.float32, torch.device("cpu"))
    with pytest.raises(RecipeError, match=r"was trained for another target than this recipe's \(its model type"):
        create(HeadRecipe(start=str(trained)), other, (), 1)
    with pytest.raises(RecipeError, match=r"fusion is 'wide', and that of .* is 'linear'"):
        create(HeadRecipe(start=str(trained), fusion="wide"), tiny(), (), 1)
    with pytest.raises(ValueError, match="'start' names a head with a 'vocabulary' of its own"):
        HeadRecipe(start=str(trained), vocabulary=96)
