"""What an early exit is made of, and which target it was made for: the `config.json` of its checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.draft import plain_values
from vllm_specvlm.draft.drafter_kind import Kind
from vllm_specvlm.draft.head_config import TargetId

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


def _parse(network: dict[str, Any], target: dict[str, Any]) -> tuple[ExitConfig, TargetId]:
    return ExitConfig(**network), TargetId(**target)


_KIND = Kind("early exit", MODEL_TYPE, FORMAT, "train the early exit again", _parse)


def is_exit(folder: str | Path) -> bool:
    """Whether there is an early exit at `folder`, sound or not."""
    return plain_values.model_type(folder) == MODEL_TYPE


def read_config(folder: str | Path) -> tuple[ExitConfig, TargetId]:
    """What the early exit in `folder` is made of and made for; see `Kind.read` for errors."""
    return _KIND.read(folder)
