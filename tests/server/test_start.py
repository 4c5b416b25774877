"""From the command line to the end: a refused start says why, a good one serves until SIGTERM."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.client import ask
from tests.server.hall import Hall
from tests.server.process import command, environment, free_port
from tests.server.questions import good
from tests.tiny.checkpoints import DRAFT, build


def refused(speculative: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    """Start a server that must not come up."""
    return subprocess.run(
        command(build("llava"), speculative, free_port(), options),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow  # imports vLLM in a process of its own, each time
@pytest.mark.parametrize(
    ("speculative", "options", "says"),
    [
        ({"num_speculative_tokens": 0}, (), "Option 'num_speculative_tokens' is 0; write a whole number from 1 to 127"),
        ({"model": "/no/such/draft"}, (), "There is no draft at '/no/such/draft'; give the"),
        ({}, ("--pipeline-parallel-size", "2"), "does not run with pipeline parallelism 2; use tensor parallelism"),
    ],
    ids=["option", "draft", "feature"],
)
def test_a_refusal_is_the_last_line(speculative: dict[str, Any], options: tuple[str, ...], says: str) -> None:
    done = refused(speculative, *options)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("specvlm serve: ") and says in last, done.stderr[-3000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # three processes
def test_a_failure_in_the_worker_is_pointed_at(tmp_path: Path) -> None:
    """The draft's weights are only read in the worker, whose log has the reason; the last line says so."""
    draft = shutil.copytree(build("llava", seed=7, size=DRAFT), tmp_path / "draft")
    weights = draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = refused({"model": str(draft)})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("specvlm serve: ") and "'failed to start'" in last, done.stderr[-3000:]
    assert "WorkerProc failed to start" in done.stdout and "SafetensorError" in done.stdout


def test_from_start_to_sigterm(hall: Hall) -> None:
    """The quick one: starts, answers twice alike, is told to end in the middle of a stream, and leaves nothing."""
    server = hall.server("draft")
    question = good()["picture"]
    first, second = (ask(server, question)[0] for _ in range(2))
    assert first == second and first.status == 200 and first.completion_tokens == 40
    with httpx.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={**question, "max_tokens": 400, "stream": True},
        timeout=60,
    ) as stream:
        assert next(stream.iter_lines()).startswith("data:")
        assert server.terminate() == 0, server.tail()
    assert not server.healthy()
    for _ in range(20):
        if not server.descendants():
            break
        time.sleep(0.5)
    assert server.descendants() == []
    assert server.complaints() == []
