"""Which target a model is: what a feature head is bound to (see `TargetId`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from vllm_specvlm.draft.head_config import TargetId

# Where the language model's final norm stands in checkpoints of Llama- and Qwen-like models, alone or inside a VLM.
_NORMS = ("model.norm.weight", "language_model.norm.weight")
# Of a layer, what adapters usually are of. Of the projector in all families, its matrices.
_MATRICES = r"\blayers\.{layer}\.(self_attn\.[vo]_proj|mlp\.down_proj)\.weight$"
_PROJECTOR = r"\b(multi_modal_projector|connector|visual\.merger)\..*weight$"
_SMALLEST = 2.0**-17  # Of bfloat16, float16 keeps all bits of numbers above.


class Matrices(NamedTuple):
    """Digests of what a target's files hold; None of what is not in them, or not in plain numbers."""

    layer: str | None = None
    projector: str | None = None


def digest(norm: torch.Tensor) -> str:
    """SHA-256 (hexadecimal) of the final norm's weights, any floating dtype, compared in bfloat16."""
    plain = norm.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
    return hashlib.sha256(plain.tobytes()).hexdigest()


def of_config(
    name: str, config: Mapping[str, Any], norm: torch.Tensor | None, folder: str | Path | None = None
) -> TargetId:
    """From a model's whole configuration and, if at hand, the weights of its final norm, and the folder of its files.

    Raises:
        ValueError: a file in the folder is damaged.
    """
    text = config.get("text_config") or config
    matrices = Matrices() if folder is None else in_files(folder, config)
    return TargetId(
        name=Path(name).name,
        model_type=str(config.get("model_type")),
        hidden_size=int(text.get("hidden_size", 0)),
        layers=int(text.get("num_hidden_layers", 0)),
        vocabulary=int(text.get("vocab_size", 0)),
        digest=None if norm is None else digest(norm),
        layer_digest=matrices.layer,
        projector_digest=matrices.projector,
    )


def folder_of(model: str, revision: str | None = None, cache: str | None = None) -> Path | None:
    """Where a model lies that is a folder, or was downloaded by name (of `revision`, to `cache`); None: nowhere."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache, local_files_only=True))
    except (OSError, ValueError):
        return None


def in_files(folder: str | Path, config: Mapping[str, Any]) -> Matrices:
    """Digests of matrices in a Hugging Face folder's safetensors, whatever dtype the model is served in.

    Args:
        folder: of the model.
        config: its configuration. Of a quantised model nothing is compared.

    Raises:
        ValueError: a file is damaged.
    """
    text = config.get("text_config") or config
    if config.get("quantization_config") or text.get("quantization_config"):
        return Matrices()
    last = int(text.get("num_hidden_layers", 0)) - 1
    patterns = [re.compile(_MATRICES.format(layer=last)), re.compile(_PROJECTOR)]
    found: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, path in _tensors(folder):
        tower = "vision" in name or ("visual" in name and ".merger" not in name)
        for pattern, mine in zip(patterns, found, strict=True):
            if not tower and (match := pattern.search(name)):
                mine[match[0]] = _read(path, name)
    return Matrices(*(_together(tensors) for tensors in found))


def _together(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """One digest of several tensors, in the order of their names, which have no names of what is around them."""
    if not tensors or any(not tensor.is_floating_point() for tensor in tensors.values()):
        return None
    whole = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        plain = tensor.to(torch.bfloat16)
        whole.update(plain.masked_fill(plain.abs() <= _SMALLEST, 0.0).contiguous().view(torch.int16).numpy().tobytes())
    return whole.hexdigest()


def _tensors(folder: str | Path) -> list[tuple[str, Path]]:
    """Names of all tensors in a folder's safetensors, with their files. Raises ValueError if a file is damaged."""
    found = []
    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found += [(name, path) for name in file.keys()]  # noqa: SIM118 - not a dictionary
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The target's file '{path}' cannot be read ({error}); download it again.") from error
    return found


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def final_norm(parameters: Iterable[tuple[str, torch.Tensor]]) -> torch.Tensor | None:
    """The weights of the language model's final norm among a loaded model's named parameters."""
    return next((tensor for name, tensor in parameters if _is_final_norm(name)), None)


def _is_final_norm(name: str) -> bool:
    return name.endswith(_NORMS) and "vision" not in name and "visual" not in name


def of_folder(folder: str | Path) -> TargetId:
    """From a Hugging Face folder.

    Raises:
        ValueError: there is no model in it, a file of it is damaged, or its final norm is not found.
    """
    folder = Path(folder).expanduser()
    try:
        # Not the bare file: it may leave out whatever is the family's default.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no model at '{folder}' ({error}); give the target's folder.") from error
    for name, path in _tensors(folder):
        if _is_final_norm(name):
            return of_config(folder.resolve().name, config, _read(path, name), folder)
    raise ValueError(
        f"The final norm of the model at '{folder}' was not found among its safetensors; "
        "give the folder of a Llama- or Qwen-like target."
    )
