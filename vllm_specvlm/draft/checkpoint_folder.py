"""A drafter's checkpoint on disk: a folder with `config.json`, `model.safetensors` and `provenance.json`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vllm_specvlm.draft.head_config import CONFIG

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
_FLOATING = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

ANetwork = TypeVar("ANetwork", bound=nn.Module)


def load(make: Callable[[], ANetwork], folder: str | Path, target_vocabulary: int) -> ANetwork:
    """The network that `make` builds, with the weights in `folder`, as stored, on the CPU.

    Raises:
        ValueError: it cannot be built, or the weights are truncated, not those of its configuration, or not finite.
    """
    try:
        # Sizes alone: what the configuration asks for is compared with what is there before any of it is allocated.
        with torch.device("meta"):
            network = make()
    except Exception as error:  # whatever the libraries below have against its numbers
        raise ValueError(
            f"The network of '{folder}' cannot be built ({_line(error)}); restore its config.json."
        ) from error
    expected = {name: _kind(tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    path = Path(folder).expanduser() / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: _stored(file, name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights '{path}' cannot be read ({_line(error)}); copy the checkpoint again.") from error
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(
            f"The weights '{path}' do not fit their config.json: {wrong[0]!r} is missing, too many or of another shape "
            f"or type ({len(wrong)} such); copy the checkpoint again."
        )
    tensors = load_file(path)
    broken = not_finite(tensors)
    if broken is not None:
        raise ValueError(f"The weights '{path}' are no finite numbers ({broken!r}); train or convert them again.")
    tokens = tensors.get("vocabulary")
    if tokens is not None and not _is_vocabulary(tokens, target_vocabulary):
        raise ValueError(
            f"The vocabulary in '{path}' is no ascending list of the target's tokens in int64; copy the checkpoint "
            "again."
        )
    network.load_state_dict(tensors, assign=True)
    return network


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of a tensor that holds something that is no finite number; None if there is none."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def _is_vocabulary(tokens: torch.Tensor, target_vocabulary: int) -> bool:
    """Whether places in it can be searched for: int64, ascending, and all of them the target's tokens."""
    ascends = tokens.dtype == torch.int64 and bool((tokens[1:] > tokens[:-1]).all())
    return ascends and int(tokens[0]) >= 0 and int(tokens[-1]) < target_vocabulary


def _stored(file: Any, name: str) -> tuple[tuple[int, ...], bool]:
    """Of a tensor in an open safetensors file: see `_kind`."""
    stored = file.get_slice(name)
    return _kind(stored.get_shape(), _FLOATING.get(stored.get_dtype(), torch.int64))


def _kind(shape: Sequence[int], dtype: torch.dtype) -> tuple[tuple[int, ...], bool]:
    """What a stored tensor must share with the network's: its shape, and whether it holds floating-point numbers."""
    return tuple(shape), dtype.is_floating_point


def _line(error: Exception) -> str:
    """The first line of what it says."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def write(
    folder: str | Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one whole, or the new one.

    Args:
        folder: replaced if it is there. (A kill between two renames leaves the old one as `.NAME.old`; it is put
            back when the next writing begins.)
        tensors: saved in their own dtypes.
        config: of its `config.json`.
        provenance: how it came about; plain JSON values.
    """
    folder = Path(folder).expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _old(folder).exists() and not folder.exists():
        _old(folder).rename(folder)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
        (fresh / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2) + "\n")
        # safetensors writes for its owner's eyes only; a checkpoint is shared, or not, as a whole.
        (fresh / WEIGHTS).chmod((fresh / CONFIG).stat().st_mode & 0o777)
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
    shutil.rmtree(_old(folder), ignore_errors=True)
    folder.rename(_old(folder))
    fresh.rename(folder)
    shutil.rmtree(_old(folder), ignore_errors=True)


def _old(folder: Path) -> Path:
    """Where the one before it waits while they are exchanged."""
    return folder.with_name(f".{folder.name}.old")
