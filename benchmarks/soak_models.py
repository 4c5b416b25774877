"""The models that are soaked: the tests' tiny ones, or the reference models."""

from __future__ import annotations

import sys
from pathlib import Path


def tiny() -> dict[str, str]:
    """Folders of target, draft and head with random weights, made for the tests: quick, and near no tie."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.tiny.checkpoints import DRAFT, build
    from tests.tiny.heads import build_head
    from vllm_specvlm.compress.compressor import CompressorConfig

    head = build_head("llava", CompressorConfig())
    return {"target": str(build("llava")), "draft": str(build("llava", seed=7, size=DRAFT)), "head": str(head)}


def reference() -> dict[str, str]:
    """Folders of the reference models."""
    from vllm_specvlm import zoo

    return {name: zoo.resolve(f"specvlm/reference-{name}") for name in ("target", "draft", "head")}
