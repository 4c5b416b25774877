"""What commands compute in unless told."""

from __future__ import annotations

from importlib import metadata

import pytest

from vllm_specvlm.cli import demo, trace


def test_float32_where_vllm_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention has none: a command without --dtype must start on a GPU too."""
    assert demo.parser().parse_args([]).dtype == trace.parser().parse_args([]).dtype == "float32"

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert demo.parser().parse_args([]).dtype == trace.parser().parse_args([]).dtype == "bfloat16"
    assert demo.parser().parse_args(["--dtype", "float32"]).dtype == "float32"
