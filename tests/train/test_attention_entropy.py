"""The target's settled layers: against transformers' own attention weights, and what a head makes of them."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.checkpoints import build
from tests.tiny.sizes import TARGET
from tests.train.test_trainer import SMALL
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.train import attention_entropy, lesson_round
from vllm_specvlm.train.attention_entropy import SettledLayer
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.head_student import HeadStudent
from vllm_specvlm.train.layer_choice import LayerChoice
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import AnswersRecipe, DraftRecipe, ExitRecipe, HeadRecipe, LossRecipe, Recipe
from vllm_specvlm.train.sources import Sources
from vllm_specvlm.train.target import Target
from vllm_specvlm.train.trainer import Trainer

LAYERS = 10
DEEP = dataclasses.replace(TARGET, layers=LAYERS)
FAMILY = ("llava", "qwen2_5_vl")
LOSSES = LossRecipe(ce=1.0, smooth_l1=0.1, intermediate=0.2)


@cache
def target(family: str = "llava", settles: bool = True) -> Target:
    return Target(str(build(family, size=DEEP)), torch.float32, torch.device("cpu"), settles=settles)


def lessons(family: str, own: float, settles: bool = True) -> list[Lesson]:
    answers = AnswersRecipe(own=own, sampled=0.0, longest=12, batch=4)
    return lesson_round.prepare(target(family, settles), Sources(SMALL.data, Path()), answers, 6, "key")


def by_the_book(family: str, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [m] layers and [m, H] features, from attention weights as transformers' eager attention returns them."""
    model: Any = target(family, False).model
    embeddings = model.get_input_embeddings()(lesson.ids)
    for (start, length), tokens in zip(lesson.pictures, lesson.visual, strict=True):
        embeddings[start : start + length] = tokens
    positions = torch.arange(len(lesson.ids))[None] if lesson.positions is None else lesson.positions[:, None]
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = "eager"
    with torch.inference_mode():
        found = decoder(
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, len(lesson.ids), dtype=torch.long),
            position_ids=positions,
            output_attentions=True,
            output_hidden_states=True,
        )
    decoder.config._attn_implementation = before
    at = lesson.slots[lesson.drafted] + 1
    weights = torch.stack([found.attentions[layer][0] for layer in (1, 2, 3)])
    entropies = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean(1)[:, at]
    chosen = entropies.argmin(0) + 1
    features = torch.stack([found.hidden_states[int(layer)][0, row] for layer, row in zip(chosen, at, strict=True)])
    return chosen, features


@pytest.mark.parametrize("own", [0.0, 1.0], ids=["read", "answered"])
@pytest.mark.parametrize("family", FAMILY)
def test_settled_features_are_those_of_the_least_entropy(family: str, own: float) -> None:
    seen: set[int] = set()
    pictures = 0
    for lesson in lessons(family, own):
        assert lesson.settled is not None
        layers, features = by_the_book(family, lesson)
        torch.testing.assert_close(lesson.settled, features, atol=1e-3, rtol=1e-3)
        seen |= set(layers.tolist())
        pictures += len(lesson.pictures)
    assert len(seen) > 1 and pictures, "one layer was chosen throughout: the choice was not tested"


@pytest.mark.parametrize("own", [0.0, 1.0], ids=["read", "answered"])
def test_looking_changes_nothing_else(own: float) -> None:
    for one, other in zip(lessons("llava", own), lessons("llava", own, settles=False), strict=True):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.final, other.final) and other.settled is None
    assert target("llava").text_config._attn_implementation == target("llava", False).text_config._attn_implementation


def test_nothing_of_it_stays() -> None:
    """transformers' registry is of the process; what was looked at would be kept in it."""
    model: Any = target("llava", False).model
    with SettledLayer(model.get_decoder(), range(1, 4)) as settled:
        model(input_ids=torch.arange(8)[None] + 10)
    assert len(settled.features) == 1
    gone = weakref.ref(settled)
    del settled
    gc.collect()
    assert gone() is None


def test_which_layers() -> None:
    assert list(attention_entropy.layers_of(30)) == list(range(1, 12))
    assert list(attention_entropy.layers_of(LAYERS)) == [1, 2, 3]


def run(out: Path, recipe: Recipe, settles: bool) -> Trainer[Any]:
    made = Trainer(
        HeadStudent(),
        recipe,
        target("llava", settles),
        Sources(recipe.data, Path()),
        out,
        Ranks(),
        say=lambda text: None,
    )
    made.run()
    return made


def test_a_head_is_guided_and_serves_as_any_other(tmp_path: Path) -> None:
    training = dataclasses.replace(SMALL.training, steps=30, save_every=30, lr=3e-3, pool=8, visits=10)
    recipe = dataclasses.replace(SMALL, training=training, head=HeadRecipe(vocabulary=96))
    found = {}
    for name, losses in (("guided", LOSSES), ("free", dataclasses.replace(LOSSES, intermediate=0.0))):
        (tmp_path / name).mkdir()
        found[name] = run(tmp_path / name, dataclasses.replace(recipe, losses=losses), name == "guided")
    rows = [line.split(",") for line in (tmp_path / "guided" / "curve.csv").read_text().splitlines()]
    guided = [float(row[rows[0].index("intermediate")]) for row in rows[1:]]
    assert sum(guided[-5:]) < 0.9 * sum(guided[:5])
    heads = {name: head_checkpoint.load(tmp_path / name / "step-000030")[0] for name in found}
    assert heads["guided"].config == heads["free"].config
    assert not torch.equal(heads["guided"].o_proj.weight, heads["free"].o_proj.weight)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(RecipeError, match="in the first 40% of the target's 2, which are fewer than two"):
        Target(str(build("llava")), torch.float32, torch.device("cpu"), settles=True)
    for other in ({"exit": ExitRecipe()}, {"draft": DraftRecipe(layers=LayerChoice(count=1))}):
        with pytest.raises(ValueError, match="middle of a feature head's layer"):
            dataclasses.replace(SMALL, head=HeadRecipe(), losses=LOSSES, **other)
