"""The benchmark of drafters: its command line, what a draft's name stands for, and what its files hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny.heads import build_head
from vllm_specvlm.compress.compressor import CompressorConfig

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "drafter", "compressor", "ratio", "task", "picture", "acceptance_length", "tpot_speedup", "e2e_speedup",
    "ttft_ratio", "identical",
}  # fmt: skip
FILES = [
    path
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    if json.loads(path.read_text()).get("command", [""])[0] == "benchmarks/drafters.py"
]


@pytest.fixture
def drafters(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "engine", raising=False)  # the tests of that name
    before = set(sys.modules)
    import drafters as module

    yield module
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_have_what_was_promised_and_no_answer_differs(path: Path) -> None:
    rows = json.loads(path.read_text())["rows"]
    assert rows and all(row.keys() >= PROMISED for row in rows)
    assert {row["picture"] for row in rows} <= {"right", "wrong", "none"}
    assert all(row["identical"] is True for row in rows)


def test_there_are_such_files() -> None:
    assert {"drafters-float32", "scenes-float32", "compressors-float32"} <= {path.stem for path in FILES}


def test_quick_is_short(drafters: Any) -> None:
    quick, whole = drafters.parse(["--quick"]), drafters.parse([])
    assert quick.prompts < whole.prompts and quick.max_tokens < whole.max_tokens and quick.pictures == ["right"]


def test_names_of_drafts(drafters: Any) -> None:
    assert drafters.draft_name("runs/pool-10/step-000128") == "pool-10"
    assert drafters.drafting("lookup") == {}
    blind, seeing = (str(build_head("llava", CompressorConfig(kind))) for kind in ("text", "prune"))
    assert drafters.drafting(blind) == {"model": blind, "text_only_draft": True}
    assert drafters.drafting(f"{seeing}+lookup") == {"model": seeing, "with_lookup": True}
    assert drafters.compressor(seeing, 144) == {"compressor": "prune", "ratio": 10.0, "visual_tokens": 15}
    with pytest.raises(ValueError, match="Two drafts are called the same"):
        drafters.methods(["a/step-000001", "a"], {})
