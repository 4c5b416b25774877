"""How a checkpoint came about, as plain JSON values, without names of places."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from vllm_specvlm import __version__
from vllm_specvlm.train.recipe import Recipe


def describe(recipe: Recipe, digests: dict[str, str], **so_far: Any) -> dict[str, Any]:
    """Recipe, data, versions and machine; `so_far` is added: step, seconds and the like."""
    return {
        "made_by": f"vllm_specvlm {__version__} train",
        **so_far,
        "recipe": without_places(recipe),
        "data": digests,
        "versions": _versions(),
        "machine": _machine(),
    }


def without_places(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values; of folders and files only the last name."""
    values = recipe.as_dict()
    values.pop("out")
    values["target"] = _last(values["target"])
    for table in (values["head"], values["draft"] or {}):
        if table:
            table["start"] = _last(table["start"])
    values["data"] = [
        each | {"source": _last(each["source"]), "images": _last(each["images"])} for each in values["data"]
    ]
    return values


def _last(name: str) -> str:
    """A model's or a source's public name as it is; of a path the last part."""
    looks_like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).exists()
    return Path(name).name if looks_like_path else name


def _versions() -> dict[str, str]:
    import safetensors
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
