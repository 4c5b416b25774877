"""docs/roofline.md is what its script computes."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_the_script_s() -> None:
    roofline = runpy.run_path(str(ROOT / "benchmarks" / "roofline.py"))
    assert (ROOT / "docs" / "roofline.md").read_text() == roofline["page"]()
