"""Which target a model is: what a feature head is bound to (see `TargetId`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig

from vllm_specvlm.draft.head_config import TargetId

# Where the language model's final norm stands in checkpoints of Llama- and Qwen-like models, alone or inside a VLM.
_NORMS = ("model.norm.weight", "language_model.norm.weight")


def digest(norm: torch.Tensor) -> str:
    """SHA-256 (hexadecimal) of the final norm's weights, any floating dtype, compared in bfloat16."""
    plain = norm.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return hashlib.sha256(plain.tobytes()).hexdigest()


def of_config(name: str, config: Mapping[str, Any], norm: torch.Tensor | None) -> TargetId:
    """From a model's whole configuration and, if at hand, the weights of its final norm."""
    text = config.get("text_config") or config
    return TargetId(
        name=Path(name).name,
        model_type=str(config.get("model_type")),
        hidden_size=int(text.get("hidden_size", 0)),
        layers=int(text.get("num_hidden_layers", 0)),
        vocabulary=int(text.get("vocab_size", 0)),
        digest=None if norm is None else digest(norm),
    )


def final_norm(parameters: Iterable[tuple[str, torch.Tensor]]) -> torch.Tensor | None:
    """The weights of the language model's final norm among a loaded model's named parameters."""
    return next((tensor for name, tensor in parameters if _is_final_norm(name)), None)


def _is_final_norm(name: str) -> bool:
    return name.endswith(_NORMS) and "vision" not in name and "visual" not in name


def of_folder(folder: str | Path) -> TargetId:
    """From a Hugging Face folder.

    Raises:
        ValueError: there is no model in it, or its final norm is not found.
    """
    folder = Path(folder).expanduser()
    try:
        # Not the bare file: it may leave out whatever is the family's default.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no model at '{folder}' ({error}); give the target's folder.") from error
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                if _is_final_norm(key):
                    return of_config(folder.resolve().name, config, file.get_tensor(key))
    raise ValueError(
        f"The final norm of the model at '{folder}' was not found among its safetensors; "
        "give the folder of a Llama- or Qwen-like target."
    )
