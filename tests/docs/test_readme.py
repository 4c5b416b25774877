"""Figures in README and docs are those of the committed result files."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = runpy.run_path(str(ROOT / "benchmarks" / "markdown.py"))


@pytest.mark.parametrize("page", MARKDOWN["PAGES"])
def test_tables_are_those_of_the_result_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- " in text
    assert MARKDOWN["with_blocks"](text) == text


def test_control_another_figure_is_noticed() -> None:
    text = (ROOT / "README.md").read_text()
    at = text.index("x", text.index("| planner |"))
    changed = text[:at] + "1" + text[at:]
    assert MARKDOWN["with_blocks"](changed) == text != changed
