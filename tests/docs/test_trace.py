"""docs/trace.md knows the options and keys there are, and its picture is one."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from vllm_specvlm.cli import trace
from vllm_specvlm.schedule.plan import Mode

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "trace.md").read_text()


def test_every_option_is_in_the_table_and_no_other() -> None:
    table = TEXT[TEXT.index("## Options") : TEXT.index("## In an engine")]
    rows = re.findall(r"^\| (`--.*?) \|", table, re.MULTILINE)
    named = {option for row in rows for option in re.findall(r"--[\w-]+", row)}
    known = {option for action in trace.parser()._actions for option in action.option_strings if len(option) > 2}
    assert named == known - {"--help", "--verbose"}


def test_every_choice_of_the_planner_is_explained() -> None:
    assert all(f"`{mode.value}`" in TEXT for mode in Mode)


def test_the_picture_is_small_enough_for_a_readme() -> None:
    path = ROOT / "docs" / "trace.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 1200
    assert "docs/trace.png" in (ROOT / "README.md").read_text()
