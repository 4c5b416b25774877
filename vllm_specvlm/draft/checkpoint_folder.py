"""A drafter's checkpoint on disk: a folder with `config.json`, `model.safetensors` and `provenance.json`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vllm_specvlm.draft.head_config import CONFIG

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"


def load_into(network: nn.Module, folder: str | Path, target_vocabulary: int) -> None:
    """Give `network` the weights in `folder`, as stored, on the CPU.

    Raises:
        ValueError: they are truncated, or not those of its configuration.
    """
    path = Path(folder).expanduser() / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights '{path}' cannot be read ({error}); copy the checkpoint again.") from error
    expected = network.state_dict()
    wrong = sorted(
        {name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape}
        | (expected.keys() ^ tensors.keys())
    )
    if wrong:
        raise ValueError(
            f"The weights '{path}' do not fit their config.json: '{wrong[0]}' is missing, too many or of another shape "
            f"({len(wrong)} such); copy the checkpoint again."
        )
    tokens = tensors.get("vocabulary")
    if tokens is not None and not (
        len(tokens.unique()) == len(tokens) and 0 <= int(tokens.min()) <= int(tokens.max()) < target_vocabulary
    ):
        raise ValueError(f"The vocabulary in '{path}' is no set of the target's tokens; copy the checkpoint again.")
    network.load_state_dict(tensors, assign=True)


def write(
    folder: str | Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one whole, or the new one.

    Args:
        folder: replaced if it is there.
        tensors: saved in their own dtypes.
        config: of its `config.json`.
        provenance: how it came about; plain JSON values.
    """
    folder = Path(folder).expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
        (fresh / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2) + "\n")
        fresh.chmod(0o755)
        _sync(fresh)
        _exchange(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync(folder: Path) -> None:
    """The files are on the disk, not only on their way there."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _exchange(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; a reader never sees less than one of them for longer than a rename."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
