"""A short soak, and that its judge would have seen what it looks for."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow  # three servers, six hundred requests
def test_two_hundred_requests(tmp_path: Path) -> None:
    """Pictures and text, sampled and greedy, clients who leave, preemptions, eighty at once."""
    report = tmp_path / "soak.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks/soak.py"),
            "--quick",
            "--methods",
            "draft-trees",
            "head-trees",
            "--json",
            str(report),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = json.loads(report.read_text())["rows"]
    assert [row["method"] for row in rows] == ["draft-trees", "head-trees"]
    for row in rows:
        assert row["faults"] == [] and row["requests"] == 200 == row["answered"] + row["left"]
        assert row["left"] > 5 and row["sampled"] > 10 and row["preemptions"] > 0 and row["accepted"] > 0
        for census in row["census"]:
            assert census["worker"]["objects_of_ours"] > 20 and census["worker"]["allocated_mib"] > 50


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("soak")


def _row(soak: Any, change: Callable[[Any], None], *, seed: int | None = None) -> dict[str, Any]:
    """What the judge counts if one of two clients hears something else."""
    plain = [soak.PlainAnswer((5, 6, 7, 8), (1, 2, 3, 4), (1.0, 1.0, 0.0005, 1.0))]
    judge = soak.Judge(plain)
    for changed in (False, True):
        heard = soak.Heard(tokens=[5, 6, 7], ends=1, counted=3)
        if changed:
            change(heard)
        judge.hear(soak.Request(0, 3, True, seed, None), heard)
    row: dict[str, Any] = judge.row()
    return row


CASES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "no end": ("lost", lambda heard: setattr(heard, "ends", 0)),
    "cut short": ("lost", lambda heard: heard.tokens.pop()),
    "an error": ("lost", lambda heard: setattr(heard, "error", "connection closed")),
    "two ends": ("twice", lambda heard: setattr(heard, "ends", 2)),
    "a token too many": ("twice", lambda heard: heard.tokens.append(8)),
    "counted wrong": ("twice", lambda heard: setattr(heard, "counted", 4)),
    "another token": ("different", lambda heard: heard.tokens.__setitem__(1, 9)),
    "the second best, far away": ("different", lambda heard: heard.tokens.__setitem__(1, 2)),
    "the second best, a tie": ("near_ties", lambda heard: heard.tokens.__setitem__(2, 3)),
    "another one at a tie": ("different", lambda heard: heard.tokens.__setitem__(2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_judge_sees_it(case: str, soak: Any) -> None:
    count, change = CASES[case]
    assert _row(soak, lambda heard: None)[count] == 0
    assert _row(soak, change)[count] == 1


def test_the_judge_compares_sampled_answers(soak: Any) -> None:
    assert _row(soak, lambda heard: heard.tokens.pop(), seed=4)["sampled_different"] == 0
    assert _row(soak, lambda heard: heard.tokens.__setitem__(0, 9), seed=4)["sampled_different"] == 1


def test_what_makes_a_row_fail(soak: Any) -> None:
    judged = soak.Judge([]).row()
    judged |= {"method": "draft", "picture_cache_misses": 1}
    judged |= {"held_while_running": 9, "census": [{"front_end": {"requests_held": []}}]}
    sound = {**judged, "drafter_off": 0, "running_at_the_end": 0, "kv_cache_used_at_the_end": 0.0, "preemptions": 3}
    assert soak.faults({**sound, "private_memory_mib": [900, 1000, 1010, 1020]}) == []
    assert len(soak.faults({**sound, "private_memory_mib": [900, 1000, 1100, 1200]})) == 1  # as much in every round
    for name in (
        "lost",
        "twice",
        "different",
        "sampled_different",
        "drafter_off",
        "kv_cache_used_at_the_end",
        "retries",
    ):
        assert len(soak.faults({**sound, name: 1, "private_memory_mib": [900]})) == 1
    held = [{"front_end": {"requests_held": []}, "worker": {"requests_held": ["._store._kept[3]"]}}]
    assert len(soak.faults({**sound, "census": held, "private_memory_mib": [900]})) == 1
    assert len(soak.faults({**sound, "held_while_running": 0, "private_memory_mib": [900]})) == 1
    assert soak.faults({**sound, "method": "plain", "retries": 1, "private_memory_mib": [900]}) == []
    assert len(soak.faults({**sound, "preemptions": 0, "private_memory_mib": [900]})) == 1


def test_traffic_is_what_it_says(soak: Any) -> None:
    waves = soak.traffic(2000, 400, soak._WAVES)
    requests = [request for wave in waves for request in wave]
    assert len(requests) == 2000 and max(map(len, waves)) == 400
    assert sum(request.leaves_after is not None for request in requests) > 200
    assert sum(request.seed is not None for request in requests) > 250
    assert all(request.stream for request in requests if request.leaves_after is not None)
