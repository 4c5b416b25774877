"""The trained parts that ship with the package: two safetensors files, and the fingerprint that identifies a build."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vllm_specvlm.zoo.errors import ZooError
from vllm_specvlm.zoo.language_model import GGUF_SHA256

FOLDER = Path(__file__).parent / "parts"
NAMES = ("target", "draft")
FORMAT = 1  # raise when checkpoints are assembled differently from the same parts


def path(name: str) -> Path:
    """File of the part ``name`` (one of NAMES)."""
    return FOLDER / f"{name}.safetensors"


def load(name: str) -> dict[str, torch.Tensor]:
    """The trained tensors of ``name``, bfloat16."""
    file = path(name)
    if not file.exists():
        raise ZooError(f"The trained part {file} is missing; reinstall vllm_specvlm.")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write the part ``name``, rounded to bfloat16."""
    FOLDER.mkdir(exist_ok=True)
    rounded = {key: value.to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    save_file(rounded, path(name), metadata={"format": "pt"})
    path(name).chmod(0o644)  # safetensors writes for the owner alone


def fingerprint() -> str:
    """Twelve hexadecimal digits that change with the parts, the language model, or the way they are put together."""
    digest = hashlib.sha256(f"{FORMAT} {GGUF_SHA256}".encode())
    for name in NAMES:
        if path(name).exists():
            digest.update(path(name).read_bytes())
    return digest.hexdigest()[:12]
