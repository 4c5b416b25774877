"""What breaks while a server runs: the drafter, which nobody notices; the engine, which is noticed and restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.client import ask, metrics
from tests.server.hall import Hall, Reference
from tests.server.process import Server
from tests.server.questions import good
from tests.tiny.checkpoints import DRAFT, build

pytestmark = pytest.mark.slow  # two servers of three processes

_PLUGIN = """
from vllm_specvlm.engine.draft_vlm import DraftVLM

def register():
    stock, calls = DraftVLM.propose_level, []

    def propose_level(self, *args):
        calls.append(1)
        if len(calls) > 30:
            raise MemoryError("injected")
        return stock(self, *args)

    DraftVLM.propose_level = propose_level
"""


@pytest.fixture
def failing(tmp_path: Path, hall: Hall, reference: Reference) -> Iterator[Server]:
    """A server whose drafter fails in its thirty-first call, by a plugin of vLLM's own kind."""
    hall.clear()
    (tmp_path / "failing_drafter.py").write_text(_PLUGIN)
    information = tmp_path / "failing_drafter-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-drafter\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[vllm.general_plugins]\nfailing = failing_drafter:register\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    speculative = {"model": str(build("llava", seed=7, size=DRAFT)), "num_speculative_tokens": 8, "planner": False}
    server = Server(build("llava"), speculative, tmp_path / "log", variables={"PYTHONPATH": path})
    try:
        server.wait_until_healthy()
        yield server
    finally:
        server.stop()


def test_a_drafter_that_fails_under_load(failing: Server, reference: Reference) -> None:
    """Every answer is plain vLLM's before, while and after; the log says it once, and a metric for ever."""
    assert metrics(failing)["specvlm_drafter_off"] == 0
    names = list(good()) * 6
    for _ in range(2):
        assert ask(failing, *(good()[name] for name in names)) == [reference.good[name] for name in names]
    assert metrics(failing)["specvlm_drafter_off"] == 1
    trees = _steps_with_trees(failing)
    assert trees > 0, "it never worked"
    log = failing.log.read_text()
    assert log.count("The drafter failed and is switched off; requests go on without speculation.") == 1
    assert "MemoryError: injected" in log
    ask(failing, good()["picture"])
    assert _steps_with_trees(failing) == trees
    assert failing.healthy()


def _steps_with_trees(server: Server) -> float:
    found = metrics(server).items()
    return sum(value for name, value in found if name.startswith("specvlm_steps_total") and 'kind="tree"' in name)


def test_an_engine_that_dies_is_noticed_and_a_restart_answers_alike(hall: Hall, reference: Reference) -> None:
    server = hall.server("draft")
    assert ask(server, good()["picture"])[0] == reference.good["picture"]
    (core,) = [pid for pid in server.descendants() if "EngineCor" in Path(f"/proc/{pid}/comm").read_text()]
    with httpx.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={**good()["picture"], "max_tokens": 400, "stream": True},
        timeout=60,
    ) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data:")
        os.kill(core, signal.SIGKILL)
        try:
            rest = list(lines)
        except httpx.TransportError:
            rest = []
        assert not any('"finish_reason":"length"' in line for line in rest), "it ended as if nothing had happened"
    for _ in range(60):
        if not server.healthy() and server.process.poll() is not None and not server.descendants():
            break
        time.sleep(0.5)
    assert not server.healthy() and server.process.poll() is not None, server.tail()
    assert server.descendants() == []
    hall.clear()
    again = Server(
        build("llava"),
        {"model": str(build("llava", seed=7, size=DRAFT)), "num_speculative_tokens": 8},
        server.log.with_suffix(".again"),
        port=server.port,
    )
    try:
        again.wait_until_healthy()
        names = list(good())
        assert ask(again, *(good()[name] for name in names)) == [reference.good[name] for name in names]
    finally:
        again.stop()
