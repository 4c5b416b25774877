"""A head before its first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig
from vllm_specvlm.train import vocabulary
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.recipe import HeadRecipe
from vllm_specvlm.train.target import Target
from vllm_specvlm.zoo import resolve


def create(
    recipe: HeadRecipe, target: Target, lessons: Sequence[Lesson], seed: int, folder: Path = Path()
) -> FeatureHead:
    """The head that the recipe starts from, or one of its sizes whose outputs are nearly the target's features at
    first, in their own scale.

    Args:
        recipe: sizes; 0 stands for the target's.
        target: its output layer's rows are copied.
        lessons: their answers give the vocabulary, their features the scale.
        seed: of the random weights.
        folder: the recipe's; what it names is relative to it.

    Raises:
        RecipeError: sizes that do not fit together, or a head to start from that is none of this target's.
    """
    torch.manual_seed(seed)
    if recipe.start:
        return _started(recipe, target, folder).to(target.device)
    text = target.text_config
    size = min(recipe.vocabulary, text.vocab_size)
    heads = recipe.num_attention_heads or text.num_attention_heads
    own_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters or {}
    try:
        config = HeadConfig(
            hidden_size=text.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=recipe.num_key_value_heads or min(heads, text.num_key_value_heads),
            head_dim=recipe.head_dim or own_size,
            intermediate_size=recipe.intermediate_size or text.intermediate_size,
            target_vocabulary=text.vocab_size,
            vocabulary=size,
            # Slots are numbered along one axis whatever the target's positions are.
            rope_parameters={"rope_type": "default", "rope_theta": float(rope.get("rope_theta", 10000.0))},
            max_position_embeddings=text.max_position_embeddings,
            rms_norm_eps=text.rms_norm_eps,
            fusion=recipe.fusion,
            feature_layers=recipe.feature_layers,
            input_norm=recipe.input_norm,
            layer_norm=recipe.layer_norm,
            output_norm=recipe.output_norm,
            compressor=recipe.compressor,
        )
    except ValueError as error:
        raise RecipeError(f"[head]: {error}") from error
    head = FeatureHead(config)
    answers = (lesson.ids[lesson.slots[lesson.drafted] + 2] for lesson in lessons)
    head.vocabulary.copy_(vocabulary.choose(answers, size, target.end_ids, text.vocab_size))
    with torch.no_grad():
        head.lm_head.weight.copy_(target.output_rows(head.vocabulary).float())
        scale = torch.cat([lesson.final for lesson in lessons]).float().square().mean().sqrt().item()
        if not config.reduces:
            _set_scale(head.norm_feature, scale)
        _set_scale(head.norm_output, scale)
    return head.to(target.device)


def _started(recipe: HeadRecipe, target: Target, folder: Path) -> FeatureHead:
    """A trained head, with a new compressor if the recipe's is another."""
    try:
        head, made_for = head_checkpoint.load(folder / Path(resolve(recipe.start)).expanduser())
    except ValueError as error:
        raise RecipeError(f"[head] start: {error}") from error
    other = made_for.differs(target.id(made_for.name))
    if other is not None:
        raise RecipeError(
            f"[head] start: '{recipe.start}' was trained for another target than this recipe's ({other}); name a head "
            "of this target."
        )
    if head.config.vocabulary is None or head.config.own_embedding:
        raise RecipeError(
            f"[head] start: '{recipe.start}' has no vocabulary of its own, or embeddings of its own, and such heads "
            "cannot be trained here; leave 'start' out."
        )
    for name in ("feature_layers", "fusion"):
        mine, theirs = getattr(recipe, name), getattr(head.config, name)
        if mine != theirs:
            raise RecipeError(f"[head] {name} is {mine!r}, and that of '{recipe.start}' is {theirs!r}; write the same.")
    if head.config.compressor == recipe.compressor:
        return head.float()
    fresh = FeatureHead(dataclasses.replace(head.config, compressor=recipe.compressor))
    whole = fresh.state_dict()
    kept = {name: v for name, v in head.state_dict().items() if name in whole and not name.startswith("compressor.")}
    fresh.load_state_dict(whole | kept)
    return fresh.float()


def _set_scale(norm: torch.nn.Module, scale: float) -> None:
    if isinstance(norm, torch.nn.RMSNorm):
        torch.nn.init.constant_(norm.weight, scale)
