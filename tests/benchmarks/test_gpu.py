"""The benchmark for owners of a GPU, on its whole road, with tiny models on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny.checkpoints import build

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_command_one_report(tmp_path: Path) -> None:
    target, file = str(build("llava")), tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--target", target, "--draft", target]
    done = subprocess.run(
        [*command, "--json", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "its figures say nothing about one" in done.stdout
    report = json.loads(file.read_text())
    rows = {(row["method"], row["concurrency"]): row for row in report["rows"]}
    methods = {"plain", "plain-v1", "vllm-ngram-5", "lookup", "tree-16", "planner"}
    assert set(rows) == {(method, size) for method in methods for size in (1, 2)}
    assert all(row["identical_share"] == 1.0 for row in rows.values())
    # A draft with its target's weights.
    assert rows["tree-16", 1]["acceptance_length"] > 3
    assert rows["plain", 1]["acceptance_length"] == 1.0
    assert set(report["runner_cost_ms"]) == {"given, 1 at once", "given, 2 at once"}
    assert report["device"]["gpu"] is None


@pytest.mark.slow
def test_a_model_that_is_not_there_is_a_row(tmp_path: Path) -> None:
    """The others go on."""
    target, file = str(build("llava")), tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--target", target]
    command += ["--draft", str(tmp_path / "no-draft"), "--methods", "tree-16", "--json", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(file.read_text())["rows"]
    assert [row["method"] for row in rows if "error" in row] == ["tree-16"]
    assert {row["method"] for row in rows if "error" not in row} == {"plain"}
