"""Does a feature head or an early exit fit a target: the model it was made for, and whether it can see pictures."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend

from vllm_specvlm.draft import exit_config, head_config, target_id
from vllm_specvlm.draft.head_config import TargetId


def head_problems(target: ModelConfig, folder: str, *, text_only_draft: bool) -> list[str]:
    """What keeps the head in `folder` from drafting for this target, a sentence each; empty when it fits.

    Of the target's weights, what is in its files is compared here; the rest once it is loaded (`check_loaded`).
    """
    try:
        head, wanted = head_config.read_config(folder)
    except ValueError as error:
        return [str(error)]
    other = _other_target("feature head", folder, wanted, target)
    if other:
        return other
    beyond = [layer for layer in head.feature_layers if wanted.layers is not None and layer >= wanted.layers]
    if beyond:
        return [f"The feature head '{folder}' reads layer {beyond[0]}, and its target has {wanted.layers}; restore it."]
    if current_platform.is_cuda():
        attends, taken = FlashAttentionBackend.supports_head_size(head.head_dim), "FlashAttention takes multiples of 8"
    else:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = CPUAttentionBackend.get_supported_head_sizes()
        attends, taken = head.head_dim in sizes, f"CPU attention takes {sizes}"
    if not attends:
        return [f"The feature head '{folder}' has heads of {head.head_dim}; vLLM's {taken}."]
    sees = head.compressor.kind != "text"
    if target.is_multimodal_model and not sees and not text_only_draft:
        return [
            f"The feature head '{folder}' drops all visual tokens; give one with a compressor that keeps some, or set "
            "'text_only_draft': true to let it draft blind."
        ]
    if sees and text_only_draft:
        return [f"The feature head '{folder}' sees pictures; leave 'text_only_draft' out."]
    return []


def exit_problems(target: ModelConfig, folder: str, *, text_only_draft: bool) -> list[str]:
    """The same for the early exit in `folder`."""
    try:
        network, wanted = exit_config.read_config(folder)
    except ValueError as error:
        return [str(error)]
    other = _other_target("early exit", folder, wanted, target)
    if other:
        return other
    if wanted.layers is not None and network.layers >= wanted.layers:
        return [
            f"The early exit '{folder}' runs {network.layers} layers, and its target has {wanted.layers}; restore it."
        ]
    if text_only_draft:
        return [f"The early exit '{folder}' sees pictures as its target does; leave 'text_only_draft' out."]
    return []


def _other_target(kind: str, folder: str, wanted: TargetId, target: ModelConfig) -> list[str]:
    try:
        difference = wanted.differs(_id(target, None))
    except ValueError as error:
        return [str(error)]
    return [] if difference is None else [_sentence(kind, folder, wanted, target.model, difference)]


def _id(target: ModelConfig, norm: torch.Tensor | None, cache: str | None = None) -> TargetId:
    """`norm` as in `target_id.of_config`; `cache`: where models that have names are downloaded to."""
    folder = target_id.folder_of(target.model, target.revision, cache)
    return target_id.of_config(target.model, target.hf_config.to_dict(), norm, folder)


def _sentence(kind: str, folder: str, wanted: TargetId, target: str, difference: str) -> str:
    return (
        f"The {kind} '{folder}' was made for '{wanted.name}' and the target is '{target}': {difference}; give one of "
        "this target."
    )


def check_loaded(kind: str, folder: str, wanted: TargetId, vllm_config: VllmConfig, target: Any) -> None:
    """Compare with the loaded weights.

    Args:
        kind: of drafter, for the message.
        folder: of the drafter.
        wanted: the target it was made for.
        vllm_config: of the engine.
        target: vLLM's loaded model.

    Raises:
        ValueError: it was made for another target.
    """
    model = vllm_config.model_config
    # Rounding to float16 first would round to other bfloat16 numbers.
    half = model.dtype == torch.float16
    norm = None if half else target_id.final_norm(target.named_parameters())
    difference = wanted.differs(_id(model, norm, vllm_config.load_config.download_dir))
    if difference is not None:
        raise ValueError(_sentence(kind, folder, wanted, model.model, difference))
