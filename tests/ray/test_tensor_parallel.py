"""vLLM's own Ray executor: the plugin in every worker, made to run on CPUs (see `play.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from tests.tiny.checkpoints import build

pytestmark = pytest.mark.slow  # engines of two processes on a cluster of their own

OPTIONS = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}


def play(speculative: dict[str, Any] | None) -> Any:
    """Answers of two rounds and the ranks' tallies."""
    command = [sys.executable, "-m", "tests.ray.play", "llava", "--options", json.dumps(OPTIONS)]
    done = subprocess.run(
        [*command, "--speculative", json.dumps(speculative)],
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert done.returncode == 0 and lines, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(lines[-1].removeprefix("ANSWERS "))


def test_two_ranks_of_a_cluster() -> None:
    """Actors answer what plain vLLM's actors answer, with trees, in step with each other to the last count."""
    plain = play(None)
    for planner, least in ((False, 50), (True, 0)):
        played = play({"model": str(build("llava")), "num_speculative_tokens": 12, "planner": planner})
        assert played["rounds"] == plain["rounds"]
        first, second = played["tallies"]
        assert first["accepted"] > least and first["drafter_failures"] == 0
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
