"""Traces on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_specvlm.schedule import trace
from vllm_specvlm.schedule.trace import RecordedTree, TracedRequest

TREES = (RecordedTree(1, (-1, -1, 0), (-0.1, -2.5, -0.3), (0, 2)), RecordedTree(4, (-1,), (-0.5,), ()))
REQUESTS = [
    TracedRequest(
        prompt=12, tokens=6, trees=TREES, limit=6, arrival=0.5, prompt_seconds=0.1, sampled=True, picture=True
    ),
    TracedRequest(prompt=3, tokens=1),
]


def test_round_trip(tmp_path: Path) -> None:
    trace.write(tmp_path / "t.jsonl", REQUESTS)
    assert trace.read(tmp_path / "t.jsonl") == REQUESTS


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 0},
        {"tokens": 0},
        {"arrival": -1.0},
        {"prompt_seconds": -0.1},
        {"colour": "red"},
        {"trees": [{"at": 1, "parents": [-1], "log_probs": [-0.1]}]},
        {"trees": [{"at": 0, "parents": [-1], "log_probs": [-0.1], "path": []}]},
        {"trees": [{"at": 1, "parents": [0], "log_probs": [-0.1], "path": []}]},
        {"trees": [{"at": 1, "parents": [-1], "log_probs": [0.1], "path": []}]},
        {"trees": [{"at": 1, "parents": [-1, -1], "log_probs": [-0.1], "path": []}]},
        {"trees": [{"at": 1, "parents": [-1, -1], "log_probs": [-0.1, -0.2], "path": [0, 1]}]},
        {"trees": [{"at": 1, "parents": [-1], "log_probs": [-0.1], "path": [1]}]},
        {"trees": [{"at": 2, "parents": [], "log_probs": [], "path": []}] * 2},
    ],
    ids=str,
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "t.jsonl"
    good = REQUESTS[0].as_dict()
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(ValueError, match=f"Line 2 of '{path}'"):
        trace.read(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"\n", "no requests"), (b"\xff", "no text"), (b"[]", "Line 1"), (b"{", "Line 1")],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        trace.read(path)
