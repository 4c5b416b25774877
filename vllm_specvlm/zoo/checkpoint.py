"""Write a reference model as a standard ``LlavaForConditionalGeneration`` folder, for transformers and vLLM alike.

Tensors carry the names of LLaVA checkpoints on the Hub (``vision_tower.vision_model...``, ``language_model.model...``):
transformers 5 reads them, and vLLM reads nothing else (``save_pretrained`` of transformers 5 drops ``vision_model.``,
which vLLM refuses).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo import draft
from vllm_specvlm.zoo.language_model import IM_END, IM_START, IMAGE_TOKEN, IMAGE_TOKEN_ID, TEXT_CONFIG
from vllm_specvlm.zoo.sizes import DRAFT, LORA_SCALE, TARGET, ModelSize
from vllm_specvlm.zoo.vision import IMAGE_PROCESSOR, PATCH, VISUAL_TOKENS

Tensors = dict[str, torch.Tensor]


def _eye(parts: Tensors) -> Tensors:
    """The parts ``eye.*`` under LLaVA's names."""
    named = {}
    for name, value in parts.items():
        if name.startswith("eye.tower."):
            rest = name.removeprefix("eye.tower.").removeprefix("vision_model.")
            named["vision_tower.vision_model." + rest] = value
        elif name.startswith("eye.projector."):
            named["multi_modal_projector." + name.removeprefix("eye.projector.")] = value
    return named


def target_tensors(language: Tensors, parts: Tensors) -> Tensors:
    """The target's checkpoint: SmolLM2's ``language`` tensors with the adapters of ``parts`` merged in, and the eye.

    A merged weight is ``W + LORA_SCALE * up @ down``, added in float32 and rounded once, to bfloat16.
    """
    tensors = {"language_model." + name: value for name, value in language.items()}
    for name, up in parts.items():
        if name.startswith("lora.") and name.endswith(".up"):
            stem = name.removesuffix(".up")
            weight = "language_model." + stem.removeprefix("lora.") + ".weight"
            tensors[weight] = tensors[weight].float() + LORA_SCALE * up.float() @ parts[stem + ".down"].float()
    return rounded(tensors | _eye(parts))


def draft_tensors(language: Tensors, parts: Tensors) -> Tensors:
    """The draft's checkpoint: decoder and eye from ``parts``; embedding and head made from SmolLM2's table."""
    table = language["model.embed_tokens.weight"].float()
    tensors = {
        "language_model.model." + name.removeprefix("decoder."): value
        for name, value in parts.items()
        if name.startswith("decoder.")
    }
    tensors["language_model.model.embed_tokens.weight"] = table @ parts["embed_in"].float()
    tensors["language_model.lm_head.weight"] = table @ parts["embed_out"].float()
    return rounded(tensors | _eye(parts))


def rounded(tensors: Tensors) -> Tensors:
    """``tensors`` in bfloat16, in the order of their names."""
    return {name: value.to(torch.bfloat16).contiguous() for name, value in sorted(tensors.items())}


def _config(size: ModelSize, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "bfloat16",
        "text_config": {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", **text},
        "vision_config": size.tower.config(),
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": VISUAL_TOKENS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "bos_token_id": IM_START,
        "eos_token_id": IM_END,
        "pad_token_id": IM_END,
    }


def target_config() -> dict[str, Any]:
    """The target's ``config.json``."""
    return _config(TARGET, TEXT_CONFIG)


def draft_config() -> dict[str, Any]:
    """The draft's ``config.json``."""
    return _config(DRAFT, draft.text_config())


PROCESSOR: dict[str, Any] = {
    "processor_class": "LlavaProcessor",
    "image_token": IMAGE_TOKEN,
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,  # the class token, which the select strategy drops again
}


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: Tensors,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_processor: dict[str, Any] = IMAGE_PROCESSOR,
    processor: dict[str, Any] = PROCESSOR,
) -> None:
    """Write configuration, weights, tokenizer, processors and generation defaults into ``folder`` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    generation = {"bos_token_id": IM_START, "eos_token_id": IM_END, "pad_token_id": IM_END, "do_sample": False}
    files = {
        "config.json": config,
        "preprocessor_config.json": image_processor,
        "processor_config.json": processor,
        "generation_config.json": generation,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
