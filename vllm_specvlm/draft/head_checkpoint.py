"""A feature head on disk: a folder with `config.json`, `model.safetensors` and `provenance.json`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import CONFIG, TargetId, as_json, read_config

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"


def load(folder: str | Path) -> tuple[FeatureHead, TargetId]:
    """The head in `folder`, float32 or as stored, on the CPU.

    Raises:
        ValueError: as `read_config`; or its weights are truncated, or not those of its configuration.
    """
    config, target = read_config(folder)
    path = Path(folder).expanduser() / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights '{path}' cannot be read ({error}); copy the checkpoint again.") from error
    head = FeatureHead(config)
    expected = head.state_dict()
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
        len(tokens.unique()) == len(tokens) and 0 <= int(tokens.min()) <= int(tokens.max()) < config.target_vocabulary
    ):
        raise ValueError(f"The vocabulary in '{path}' is no set of the target's tokens; copy the checkpoint again.")
    head.load_state_dict(tensors, assign=True)
    return head, target


def save(folder: str | Path, head: FeatureHead, target: TargetId, provenance: Mapping[str, Any]) -> None:
    """Write the checkpoint; a kill at any moment leaves the old one whole, or the new one.

    Args:
        folder: replaced if it is there.
        head: saved in its own dtypes.
        target: the target it was made for.
        provenance: how it came about; plain JSON values.
    """
    folder = Path(folder).expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CONFIG).write_text(json.dumps(as_json(head.config, target), indent=2) + "\n")
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
    """Put `fresh` in the place of `folder`; `read_config` never sees less than one of them for longer than a rename."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
