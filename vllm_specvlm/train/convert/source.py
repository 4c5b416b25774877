"""A public head as it was downloaded: its configuration and its tensors, still under their own names."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_FLOATING = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Source:
    """What a folder holds."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """On the CPU, in the dtypes they were stored in."""
    files: tuple[Path, ...]
    """The files that the tensors came from."""

    @property
    def name(self) -> str:
        """The last part of the folder's path: what messages and provenance call the source."""
        return self.folder.resolve().name


def read(folder: str | Path) -> Source:
    """Read `config.json` and either all `*.safetensors` or all `pytorch_model*.bin` in `folder`.

    A `.bin` is unpickled with nothing but tensors allowed.

    Raises:
        ValueError: no such folder, a file is missing, damaged or not what it should be; in one sentence.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"'{folder}' is not a folder; download the head first, for example with `hf download NAME --local-dir DIR`,"
            " and give the folder."
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except OSError as error:
        raise ValueError(
            f"'{folder}' has no readable config.json ({error.strerror}); download the head again."
        ) from error
    except ValueError as error:
        raise ValueError(f"'{folder}/config.json' is not JSON ({error}); download the head again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{folder}/config.json' is not a JSON object; download the head again.")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"'{folder}' has neither *.safetensors nor pytorch_model*.bin; download the head again.")
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        for name, tensor in _load(path).items():
            if name in tensors:
                raise ValueError(f"'{path}' repeats the tensor '{name}' of another file; remove one of the two.")
            tensors[name] = tensor
    return Source(folder, config, tensors, tuple(files))


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"'{path}' cannot be read, it may be truncated ({reason}); download it again.") from error
    if not isinstance(loaded, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in loaded.values()):
        raise ValueError(f"'{path}' is not a dictionary of tensors; give a checkpoint that holds the head alone.")
    return loaded


class Tensors:
    """The tensors of a source, each handed out once with its shape checked, so that none is left unread."""

    def __init__(self, source: Source, layout: str) -> None:
        self._source = source
        self._layout = layout
        # Positions of rotary embeddings, which old checkpoints keep and every reader computes.
        self._left = {name: value for name, value in source.tensors.items() if "rotary_emb.inv_freq" not in name}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The floating-point tensor `name`. Raises ValueError if it is missing or has another shape or dtype."""
        found = self.maybe(name, *shape)
        if found is None:
            raise ValueError(
                f"The {self._layout} head '{self._source.name}' lacks the tensor '{name}'; download it again."
            )
        return found

    def maybe(self, name: str, *shape: int) -> torch.Tensor | None:
        """As `take`, but None if there is no such tensor."""
        found = self._left.pop(name, None)
        if found is None:
            return None
        if tuple(found.shape) != shape:
            raise ValueError(
                f"The tensor '{name}' of '{self._source.name}' has shape {tuple(found.shape)}, which its config.json "
                f"says is {shape}; download both again."
            )
        if found.dtype not in _FLOATING:
            raise ValueError(
                f"The tensor '{name}' of '{self._source.name}' has dtype {found.dtype}; give a head that is not "
                "quantised."
            )
        return found

    def raw(self, name: str) -> torch.Tensor | None:
        """The tensor `name` of any shape and dtype, or None."""
        return self._left.pop(name, None)

    def finish(self) -> None:
        """Raise ValueError if a tensor was not asked for: it may be a part that this project's head has not."""
        if self._left:
            name = min(self._left)
            raise ValueError(
                f"'{self._source.name}' has the tensor '{name}', unknown in {self._layout} heads ({len(self._left)} "
                "such); a head with other parts cannot be converted."
            )
