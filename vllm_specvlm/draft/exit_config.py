"""What an early exit is made of, and which target it was made for: the `config.json` of its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.draft import plain_values
from vllm_specvlm.draft.head_config import CONFIG, TargetId

MODEL_TYPE = "specvlm_early_exit"
FORMAT = 1
_MOST_BLOCKS = 1024


@dataclass(frozen=True, slots=True)
class ExitConfig:
    """The network of an early exit: see `draft.early_exit`."""

    hidden_size: int
    """Of the target."""
    layers: int
    """So many of the target's first layers run before it, 1 or more."""
    blocks: int
    """Residual blocks of the imitation network."""
    intermediate_size: int
    """Width inside a block."""
    target_vocabulary: int
    vocabulary: int
    """Tokens it can draft."""
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        plain_values.check(self, "early exit's")
        if self.blocks > _MOST_BLOCKS:
            raise ValueError(
                f"The early exit's blocks are {self.blocks}; write a whole number from 1 to {_MOST_BLOCKS}."
            )
        if self.vocabulary > self.target_vocabulary:
            raise ValueError(
                f"The early exit drafts {self.vocabulary} tokens; it must be 1 to the target's "
                f"{self.target_vocabulary}."
            )


def as_json(config: ExitConfig, target: TargetId) -> dict[str, Any]:
    """The `config.json` of an early exit."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["SpecVLMEarlyExit"],
        "format": FORMAT,
        "target": dataclasses.asdict(target),
        "network": dataclasses.asdict(config),
    }


def from_json(given: Mapping[str, Any]) -> tuple[ExitConfig, TargetId]:
    """Read what `as_json` wrote.

    Raises:
        ValueError: it is no early exit, was written by a newer version, or has a key missing or too many.
    """
    if not isinstance(given, Mapping):
        raise ValueError("Its config.json is no JSON object; restore the file.")
    if given.get("model_type") != MODEL_TYPE:
        raise ValueError(f"Its model type is {given.get('model_type')!r}, not {MODEL_TYPE!r}; give an early exit.")
    if given.get("format") != FORMAT:
        raise ValueError(
            f"Its format is {given.get('format')!r} and this version reads {FORMAT}; upgrade vllm_specvlm, or train "
            "the early exit again."
        )
    try:
        network, target = given["network"], given["target"]
        if not isinstance(network, Mapping) or not isinstance(target, Mapping):
            raise TypeError("'network' and 'target' must be objects")
        return ExitConfig(**network), TargetId(**target)
    except (KeyError, TypeError) as error:
        raise ValueError(f"Its config.json does not describe an early exit ({error}); restore the file.") from error


def is_exit(folder: str | Path) -> bool:
    """Whether there is an early exit at `folder`, sound or not."""
    return plain_values.model_type(folder) == MODEL_TYPE


def read_config(folder: str | Path) -> tuple[ExitConfig, TargetId]:
    """What the early exit in `folder` is made of and made for.

    Raises:
        ValueError: there is none, or its configuration cannot be read, in one sentence.
    """
    path = Path(folder).expanduser() / CONFIG
    try:
        given = plain_values.parsed(path)
    except OSError as error:
        raise ValueError(f"There is no early exit at '{folder}' ({error.strerror}); give its folder.") from error
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}); restore the file.") from error
    try:
        return from_json(given)
    except ValueError as error:
        raise ValueError(f"The early exit '{folder}' cannot be used: {error}") from error
