"""A head before its first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig
from vllm_specvlm.train import vocabulary
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.lesson import Lesson
from vllm_specvlm.train.recipe import HeadRecipe
from vllm_specvlm.train.target import Target


def create(recipe: HeadRecipe, target: Target, lessons: Sequence[Lesson], seed: int) -> FeatureHead:
    """A head of the recipe's sizes whose outputs are, at first, nearly the target's features, in their own scale.

    Args:
        recipe: sizes; 0 stands for the target's.
        target: its output layer's rows are copied.
        lessons: their answers give the vocabulary, their features the scale.
        seed: of the random weights.

    Raises:
        RecipeError: sizes that do not fit together.
    """
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
    torch.manual_seed(seed)
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


def _set_scale(norm: torch.nn.Module, scale: float) -> None:
    if isinstance(norm, torch.nn.RMSNorm):
        torch.nn.init.constant_(norm.weight, scale)
