"""`specvlm batch` as a user runs it: on a cluster that is there, and on one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

import ray

from tests.ray.batch_case import line, plain_tokens, read, tokens, write
from tests.ray.local_cluster import local_cluster
from tests.tiny.checkpoints import build

pytestmark = pytest.mark.slow  # two clusters, an engine on each

_OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(64 << 20)),
    *("--max-model-len", "512", "--speculative-config", '{"method": "specvlm", "num_speculative_tokens": 8}'),
)


def run(file: Path, output: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_specvlm.cli", "batch", str(build("llava")), *_OPTIONS, *options]
    return subprocess.run(
        [*command, "--input", str(file), "--output", str(output)],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_runs(tmp_path: Path) -> None:
    """The first lacks a picture; the second has the whole file and continues the answers."""
    lines: list[dict[str, Any]] = [line(number) for number in range(8)]
    file, output = write(tmp_path, lines[:5]), tmp_path / "answers.jsonl"
    with local_cluster(cpus=4):
        first = run(file, output, ray.get_runtime_context().gcs_address, "--batch-size", "2", "--json")
    assert first.returncode == 0, first.stderr[-4000:]
    assert json.loads(first.stdout) == {"output": str(output), "skipped": 0, "answered": 5, "failed": 0}
    lines.append(line(8, image="missing.png"))
    write(tmp_path, lines)
    second = run(file, output, "local")
    assert second.returncode == 1, second.stderr[-4000:]
    assert "4 answered, 5 were there, 1 with an error" in second.stderr
    answers = read(output)
    assert answers.pop("q8")["error"]
    assert {name: tokens(entry) for name, entry in answers.items()} == plain_tokens(tmp_path, lines[:8])


def test_a_refusal_is_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, [line(0)])
    done = run(file, tmp_path / "answers.jsonl", "local", "--speculative-config", '{"method": "specvlm", "dept": 3}')
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("specvlm batch: ") and "Unknown speculative-config option 'dept'" in last, done.stderr[
        -3000:
    ]
