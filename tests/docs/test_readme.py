"""Figures in README and docs are those of the committed result files."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from tests.exactness.support_cases import AXES, CASES

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


def test_the_table_of_what_is_supported_holds_the_cases_that_are_tested() -> None:
    """All of them, and no other ones."""
    cases = json.loads((ROOT / "benchmarks" / "results" / "support.json").read_text())["cases"]
    assert sorted(tuple(case[axis] for axis in AXES) for case in cases) == sorted(CASES)


def test_a_case_that_failed_is_shown() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "support.json").read_text())
    report["cases"][0]["outcome"] = "failed"
    assert "| no, " in MARKDOWN["support"](report)
    assert "| no, " not in (ROOT / "README.md").read_text()


def test_the_table_of_features() -> None:
    """Of a report as `benchmarks/features.py` writes it: medians, and the rounds behind them."""
    alone = {"what": "alone", "acceptance_length": 4.2, "identical": 8, "answers": 8}
    others = {"what": "beside 7 others", "others_ratios": [0.97, 1.0], "plain_others_ratios": [0.99, 1.01]}
    rows = [
        {**alone, "feature": "grammar: JSON", "speedups": [1.1, 1.2, 1.25]},
        {**others, "feature": "none", "others_ratio": 1.0, "plain_others_ratio": 1.0, "others_speedup": 1.5},
        {**others, "feature": "penalties", "others_ratio": 0.98, "plain_others_ratio": 1.0, "others_speedup": 1.4},
    ]
    table = MARKDOWN["features"]({"rows": rows})
    assert "| grammar: JSON | 1.20x (1.10 to 1.25) | 4.20 | 8 of 8 |" in table
    assert "| penalties | 98.0% (0.97 to 1.00) | 100.0% (0.99 to 1.01) | 1.40x |" in table
    assert "| none | 100.0% (0.97 to 1.00) | 100.0% (0.99 to 1.01) | 1.50x |" in table


def test_the_target_that_turns_a_drafter() -> None:
    """There, answers take as long as plain vLLM's divided by 1.2."""
    spent = {"acceptance_length": 2.0, "level_ms": 1.0, "plain_s": 10.0, "own_s": 9.0, "passes_s": 1.0, "python_s": 2.0}
    dear = {**spent, "own_s": 11.0}
    lines = MARKDOWN["stops"]({"profiles": {"good": spent, "bad": dear}}).splitlines()
    shares, larger, more = lines[2].split("|")[4:8], *map(float, lines[2].split("|")[8:10])
    assert [share.strip() for share in shares] == ["60%", "10%", "20%", "90%"]
    assert larger * (0.6 + 0.1) + 0.2 == pytest.approx(larger / 1.2, abs=0.01)
    assert more * 0.6 + 0.1 + 0.2 == pytest.approx(more / 1.2, abs=0.01)
    assert [cell.strip() for cell in lines[3].split("|")[8:10]] == ["none", "9.00"]
