"""A feature head on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_specvlm.draft import checkpoint_folder
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import TargetId, as_json, read_config


def load(folder: str | Path) -> tuple[FeatureHead, TargetId]:
    """The head in `folder`, float32 or as stored, on the CPU.

    Raises:
        ValueError: as `read_config`; or its weights are truncated, or not those of its configuration.
    """
    config, target = read_config(folder)
    return checkpoint_folder.load(lambda: FeatureHead(config), folder, config.target_vocabulary), target


def save(folder: str | Path, head: FeatureHead, target: TargetId, provenance: Mapping[str, Any]) -> None:
    """Write the checkpoint: see `checkpoint_folder.write`; `target` is the one it was made for."""
    checkpoint_folder.write(folder, head.state_dict(), as_json(head.config, target), provenance)
