"""A draft VLM's compressor on disk: a folder `compressor` in its checkpoint, which models of its class leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_specvlm.compress.compressor import Compressor, CompressorConfig, build
from vllm_specvlm.draft import checkpoint_folder, plain_values
from vllm_specvlm.draft.drafter_kind import Kind

FOLDER = "compressor"
KINDS = ("none", "prune", "pool", "conv", "resampler", "concat")
"""What it may be: those that ask for nothing but the picture, and leave nothing but tokens."""


def _parse(network: dict[str, Any], target: dict[str, Any]) -> tuple[CompressorConfig, int]:
    config, hidden = CompressorConfig.from_dict(network["compressor"]), network["hidden_size"]
    if config.kind not in KINDS:
        raise ValueError(f"A draft VLM's compressor cannot be '{config.kind}'; it must be one of {', '.join(KINDS)}.")
    if not plain_values.is_count(hidden, 1):
        raise ValueError(f"The compressor's hidden size is {hidden!r}; write a whole number from 1 up.")
    return config, hidden


_KIND = Kind("draft VLM's compressor", "specvlm_draft_compressor", 1, "train the draft again", _parse)


def is_there(draft: str | Path) -> bool:
    """Whether the draft VLM in a folder, or of a name, has one."""
    return (Path(draft).expanduser() / FOLDER).is_dir()


def load(draft: str | Path, hidden_size: int) -> Compressor | None:
    """The compressor of the draft VLM of this width in a folder, on the CPU; None if it reads all visual tokens.

    Raises:
        ValueError: there is one that cannot be read, or is of another width, in one sentence.
    """
    if not is_there(draft):
        return None
    folder = Path(draft).expanduser() / FOLDER
    config, hidden = _KIND.read(folder)
    if hidden != hidden_size:
        raise ValueError(
            f"The draft '{draft}' is {hidden_size} wide and its compressor {hidden}; copy the checkpoint again."
        )
    return checkpoint_folder.load(lambda: build(config, hidden), folder, 0).eval()


def save(draft: str | Path, compressor: Compressor, hidden_size: int) -> None:
    """Write it into the folder of a draft VLM of this width; one that leaves all tokens is not written."""
    if compressor.config.kind == "none":
        return
    config = {
        "model_type": _KIND.model_type,
        "format": _KIND.format,
        "network": {"hidden_size": hidden_size, "compressor": compressor.config.as_dict()},
        "target": {},
    }
    checkpoint_folder.write(Path(draft) / FOLDER, compressor.state_dict(), config, {})
