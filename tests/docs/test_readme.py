"""Figures in the README are those of the committed result files."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_those_of_the_result_files() -> None:
    text = (ROOT / "README.md").read_text()
    markdown = runpy.run_path(str(ROOT / "benchmarks" / "markdown.py"))
    assert "<!-- speedup -->" in text
    assert markdown["with_blocks"](text) == text
