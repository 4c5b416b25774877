"""Draft VLMs for the tiny targets, made as training makes them, and moved as training moves them."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch
import transformers

from tests.tiny.checkpoints import build, cache_folder
from tests.tiny.families import FAMILIES
from tests.tiny.sizes import DRAFT
from tests.tiny.tokenizers import ENTRIES, make_tokenizer
from vllm_specvlm.train import draft_checkpoint, new_draft
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.recipe import DraftRecipe
from vllm_specvlm.train.reference_source import ReferenceSource
from vllm_specvlm.train.small_vlm import SmallVLM
from vllm_specvlm.train.target import Target


@cache
def trained_target(family: str, tower: bool = False) -> Target:
    """The family's target as training sees it; `tower`: for drafts of another language model."""
    return Target(str(build(family)), torch.float32, torch.device("cpu"), tower=tower)


@cache
def pictured(family: str, tower: bool) -> list[Lesson]:
    """Two conversations about pictures."""
    target = trained_target(family, tower)
    talks = [ReferenceSource().draw(random.Random(seed), "train") for seed in range(2)]
    return target.read([target.encoder.encode(each) for each in talks])


def language_model(family: str) -> Path:
    """A small language model with the family's tokenizer, of the kind that its class takes."""
    if family == "llava":
        return build(family, seed=3, size=DRAFT, text_only=True)
    facts = FAMILIES[family]
    folder = cache_folder() / f"qwen2-{family}-{transformers.__version__}"
    if not folder.is_dir():
        tokenizer = make_tokenizer(facts.specials, facts.attributes, "usual")
        torch.manual_seed(3)
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DRAFT.text(tokenizer, ENTRIES + 32)))
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def small_vlm(family: str, recipe: DraftRecipe, *, moved: float = 0.0) -> SmallVLM:
    """What a run with this recipe begins with; `moved`: how far its map or projector is then moved at random."""
    tower = bool(recipe.start)
    network = new_draft.create(recipe, trained_target(family, tower), pictured(family, tower), 0, Path()).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.projector.parameters():
            size = moved * weight.std() if weight.dim() == 2 else 0.1 * moved
            weight.add_(torch.randn(weight.shape, generator=noise) * size)
    return network


def save(folder: Path, family: str, network: SmallVLM) -> Path:
    """Its checkpoint."""
    draft_checkpoint.save(folder, network, build(family), trained_target(family).id(family), {"made": "for tests"})
    return folder
