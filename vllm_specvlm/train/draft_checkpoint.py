"""A trained draft VLM on disk: an ordinary Hugging Face checkpoint of the target's class, as vLLM and transformers read
it, and in a folder `student` what going on with its training needs.

Whatever the target's files call its tensors, the draft's are called the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import checkpoint_folder, picture_compressor
from vllm_specvlm.draft.drafter_kind import Kind
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train.errors import RecipeError
from vllm_specvlm.train.small_vlm import SmallVLM, SmallVLMConfig

STUDENT = "student"
_BESIDE = (
    "tokenizer", "preprocessor_config", "processor_config", "video_preprocessor_config", "chat_template",
    "special_tokens", "added_tokens", "vocab", "merges", "generation_config", "spiece",
)  # fmt: skip
"""How files begin that say how text and pictures are read, or where answers end."""
_LAST = ("multi_modal_projector.linear_2", "merger.mlp.2")
"""The last layer of the projector, which the map is made part of, in LLaVA's and in Qwen-VL's names."""


def _parse(network: dict[str, Any], target: dict[str, Any]) -> tuple[SmallVLMConfig, TargetId]:
    network["compressor"] = CompressorConfig.from_dict(network["compressor"])
    return SmallVLMConfig(**network), TargetId(**target)


_KIND = Kind("draft VLM in training", "specvlm_draft_student", 1, "train it again", _parse)


def folder_of(target: str) -> Path:
    """The folder that transformers reads a target's files from, its name given. Raises RecipeError: there is none."""
    from transformers.utils import cached_file

    found = cached_file(target, "config.json", _raise_exceptions_for_missing_entries=False)
    if found is None or not any(Path(found).parent.glob("*.safetensors")):
        raise RecipeError(
            f"The target '{target}' has no safetensors in a folder; save it as such, and give the folder."
        )
    return Path(found).parent


def load(folder: Path) -> tuple[SmallVLM, TargetId]:
    """The network of a checkpoint as it was in training.

    Raises:
        ValueError: it is none, or is damaged.
    """
    config, target = _KIND.read(folder / STUDENT)
    path = folder / STUDENT / checkpoint_folder.WEIGHTS
    try:
        network = SmallVLM(config)
    except Exception as error:  # whatever the libraries below have against its numbers
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"The network of '{folder / STUDENT}' cannot be built ({said}); restore its config.json."
        ) from error
    try:
        network.load_state_dict(load_file(path), assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights '{path}' cannot be read ({error}); copy the checkpoint again.") from error
    return network, target


def save(folder: Path, network: SmallVLM, target_folder: Path, target: TargetId, provenance: Mapping[str, Any]) -> None:
    """Write a checkpoint into `folder`; the target's files are in `target_folder`."""
    tensors = serving_tensors(network, target_folder)
    dtype = next(iter(tensors.values())).dtype
    checkpoint_folder.write(folder, tensors, serving_config(network, target_folder, dtype), provenance)
    for path in sorted(target_folder.iterdir()):
        if path.is_file() and path.name.startswith(_BESIDE) and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    picture_compressor.save(folder, network.compressor, network.hidden_size)
    network_config = asdict(network.config) | {"compressor": network.config.compressor.as_dict()}
    config = {
        "model_type": _KIND.model_type,
        "format": _KIND.format,
        "target": asdict(target),
        "network": network_config,
    }
    checkpoint_folder.write(folder / STUDENT, network.state_dict(), config, {})


def serving_config(network: SmallVLM, target_folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The target's `config.json` with another language model in it."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(target_folder, trust_remote_code=False)
    text: Any = AutoConfig.for_model(**network.config.text)
    text.dtype = config.dtype = dtype
    config.text_config = text
    config.tie_word_embeddings = text.tie_word_embeddings
    # What the tower's own last layer gives.
    width = {"qwen2_5_vl": "out_hidden_size", "qwen2_vl": "hidden_size"}.get(config.model_type)
    if width is not None:
        setattr(config.vision_config, width, text.hidden_size)
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return found


def serving_tensors(network: SmallVLM, target_folder: Path) -> dict[str, Tensor]:
    """The target's tensors with another language model among them, and the map in the projector's last layer.

    They are of the dtype of the target's final norm. Raises RecipeError if the target's projector is not found.
    """
    kept: dict[str, Tensor] = {}
    start, head, dtype = "", "", torch.float32
    for path in sorted(target_folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                if _is_language(name):
                    if name.endswith("layers.0.input_layernorm.weight"):
                        start, dtype = name.removesuffix("layers.0.input_layernorm.weight"), _dtype(file, name)
                    head = name if name.endswith("lm_head.weight") else head
                    continue
                kept[name] = file.get_tensor(name)
    kept = {name: value.to(dtype) if value.is_floating_point() else value for name, value in kept.items()}
    if network.config.tower_hidden:
        _exchange_projector(kept, network)
    else:
        _fold_map(kept, network)
    language = {start + name: value for name, value in network.language.state_dict().items()}
    if hasattr(network, "lm_head"):
        beside = start.removesuffix("model.") if start == "language_model.model." else ""
        language[head or f"{beside}lm_head.weight"] = network.lm_head.weight
    return kept | {name: value.detach().to("cpu", dtype) for name, value in language.items()}


def _fold_map(kept: dict[str, Tensor], network: SmallVLM) -> None:
    """Make the map part of the target's projector: of its last layer, and of what is put between its tokens."""
    projector: Any = network.projector
    map_ = projector.weight.detach().float().cpu()
    shift = torch.zeros(len(map_)) if projector.bias is None else projector.bias.detach().float().cpu()
    found = False
    for name, before in kept.items():
        stem, _, last = name.rpartition(".")
        if stem.endswith(_LAST):
            found |= last == "weight"
            kept[name] = (map_ @ before.float() + (shift if last == "bias" else 0.0)).to(before.dtype)
        elif last == "image_newline":
            kept[name] = (map_ @ before.float() + shift).to(before.dtype)
    if not found:
        raise _no_projector(_LAST)


def _exchange_projector(kept: dict[str, Tensor], network: SmallVLM) -> None:
    """Put the network's own projector in the place of the target's."""
    own = network.projector.state_dict()
    placed = set()
    for name, before in kept.items():
        stem, _, last = name.rpartition(".")
        for layer, place in (("linear_1", "0"), ("linear_2", "2")):
            if stem.endswith(f"multi_modal_projector.{layer}"):
                kept[name] = own[f"{place}.{last}"].to("cpu", before.dtype)
                placed.add(f"{place}.{last}")
    if placed != own.keys():
        raise _no_projector(("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"))


def _no_projector(names: tuple[str, ...]) -> RecipeError:
    """Without it what was learned would be lost, and the draft would see nothing."""
    return RecipeError(
        f"The target's safetensors name no whole {' or '.join(names)}, its projector; save the target again with "
        "transformers."
    )


def _is_language(name: str) -> bool:
    """Whether a tensor of a VLM belongs to its language model."""
    if name.endswith("lm_head.weight"):
        return True
    eyes = ("vision_tower", "visual", "multi_modal_projector", "image_newline", "vision_model")
    return not any(part in eyes for part in name.split("."))


def _dtype(file: Any, name: str) -> torch.dtype:
    found: torch.dtype = file.get_tensor(name).dtype
    return found
