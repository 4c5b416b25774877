"""The target that a head is converted for: who it is, and the tables it shares with the head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vllm_specvlm.draft import target_id
from vllm_specvlm.draft.head_config import TargetId

_VISION = ("vision", "visual")


@dataclass(frozen=True, slots=True)
class Target:
    """A Hugging Face folder; its weights may be missing."""

    folder: Path
    id: TargetId

    def embedding(self) -> torch.Tensor | None:
        """[vocabulary, hidden]: the table of token embeddings; None if the weights are not in the folder."""
        return self._find("embed_tokens.weight")

    def output(self) -> torch.Tensor | None:
        """[vocabulary, hidden]: the output layer, which may be the embedding table; None if it is not in the folder."""
        found = self._find("lm_head.weight")
        return self.embedding() if found is None else found

    def ends(self) -> list[int]:
        """The tokens that end an answer, as the folder's files name them."""
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            config = _json(self.folder / name)
            for given in (config, config.get("text_config") or {}):
                value = given.get("eos_token_id")
                found |= {value} if isinstance(value, int) else set(value or ())
        return sorted(found)

    def _find(self, ending: str) -> torch.Tensor | None:
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - not a dictionary
                        if _is(key, ending) and not any(word in key for word in _VISION):
                            found: torch.Tensor = file.get_tensor(key)
                            return found
            except (OSError, SafetensorError) as error:
                raise ValueError(f"The target's '{path}' cannot be read ({error}); download it again.") from error
        return None


def _is(key: str, ending: str) -> bool:
    return key == ending or key.endswith(f".{ending}")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_folder(folder: str | Path) -> Target:
    """The target in `folder`: at least its `config.json`; without weights it has no digest and no tables.

    Raises:
        ValueError: there is no model, in one sentence.
    """
    folder = Path(folder).expanduser()
    if any(folder.glob("*.safetensors")):
        return Target(folder, target_id.of_folder(folder))
    config = _json(folder / "config.json")
    try:
        return Target(folder, target_id.of_config(folder.resolve().name, config, None))
    except ValueError as error:
        raise ValueError(
            f"'{folder}' is not the folder of a target (its config.json has no hidden_size, num_hidden_layers and "
            "vocab_size); give its path."
        ) from error


def same(own: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tables are equal in their common rows, up to one having been rounded to the other's dtype."""
    count = min(len(own), len(theirs))
    own, theirs = own[:count], theirs[:count]
    if own.shape != theirs.shape or not theirs.is_floating_point():
        return False
    return torch.equal(own, theirs.to(own.dtype)) or torch.equal(own.to(theirs.dtype), theirs)
