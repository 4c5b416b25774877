"""The metrics' way from the worker to `/metrics`, and every way in which it can be blocked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_specvlm.engine import exporter
from vllm_specvlm.engine.metric import CELLS, METRICS
from vllm_specvlm.engine.metrics import Metrics
from vllm_specvlm.engine.shared_cells import VARIABLE, SharedCells, found

ENGINE = {"model_name": "tiny", "engine": "0"}
TREE = {**ENGINE, "modality": "image", "sampling": "greedy"}


@pytest.fixture(autouse=True)
def _undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines of other tests find the environment as it was."""
    monkeypatch.setenv(VARIABLE, "")
    yield
    exporter._EXPORTER.show(None, "")


def _value(name: str, labels: dict[str, str]) -> float | None:
    value: float | None = REGISTRY.get_sample_value(name, labels)
    return value


def test_counts_arrive() -> None:
    exporter.export("tiny")
    metrics = exporter.metrics()
    for mode in ("plain", "trees", "trees", "fixed"):
        metrics.plan(mode)
    metrics.step(True)
    for nodes, length in ((1, 1), (16, 5), (17, 18), (127, 128)):
        metrics.tree(nodes, length, picture=True, sampled=False)
    metrics.tree(3, 1, picture=False, sampled=True)
    metrics.forbidden(3)
    metrics.forbidden(4)
    metrics.spent({"draft": 2.5, "draft_model": 2.0, "verify": 0.25})
    assert [_value("specvlm_plans_total", {**ENGINE, "mode": mode}) for mode in ("plain", "trees", "probe")] == [
        1,
        2,
        0,
    ]
    assert _value("specvlm_steps_total", {**ENGINE, "kind": "tree"}) == 1
    assert _value("specvlm_tree_nodes_sum", TREE) == 161
    assert _value("specvlm_tree_nodes_count", TREE) == 4
    nodes = [_value("specvlm_tree_nodes_bucket", {**TREE, "le": le}) for le in ("1.0", "12.0", "16.0", "24.0", "+Inf")]
    assert nodes == [1, 1, 2, 3, 4]
    lengths = [_value("specvlm_acceptance_length_bucket", {**TREE, "le": le}) for le in ("1.0", "5.0", "64.0", "128.0")]
    assert lengths == [1, 2, 3, 4]
    other = {**ENGINE, "modality": "text", "sampling": "sampled"}
    assert _value("specvlm_acceptance_length_sum", other) == 1
    assert _value("specvlm_forbidden_nodes_total", ENGINE) == 7
    assert _value("specvlm_draft_seconds_total", ENGINE) == 2.5
    assert _value("specvlm_draft_pass_seconds_total", ENGINE) == 2.0
    assert _value("specvlm_verify_seconds_total", ENGINE) == 0.25
    assert _value("specvlm_drafter_off", ENGINE) == 0
    metrics.switched_off()
    assert _value("specvlm_drafter_off", ENGINE) == 1


def test_every_metric_is_shown_as_what_it_is() -> None:
    """Read back by Prometheus's own parser."""
    exporter.export("tiny")
    shown = {
        family.name: family
        for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())
        if family.name.startswith("specvlm_")
    }
    assert len(shown) == len(METRICS)
    for metric in METRICS:
        family = shown[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert {sample.name for sample in family.samples} == set(metric.samples)
        for sample in family.samples:
            assert sample.value == 0
            assert set(sample.labels) - {"le"} == {"model_name", "engine", *(name for name, _ in metric.labels)}


def test_another_process_counts() -> None:
    exporter.export("tiny")
    program = "from vllm_specvlm.engine import exporter; exporter.metrics().plan('probe')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert _value("specvlm_plans_total", {**ENGINE, "mode": "probe"}) == 1


def test_several_front_ends(tmp_path: Path) -> None:
    """Each shows what the process that started them shares with the worker, beside what they gather from files."""
    exporter.export("tiny")
    exporter.metrics().plan("probe")
    program = (
        "from prometheus_client import CollectorRegistry, Counter, multiprocess, generate_latest\n"
        "from vllm_specvlm.engine import exporter\n"
        "Counter('others', 'of vLLM').inc()\n"
        "exporter.export('tiny', beside_others=True)\n"
        "for _ in range(2):\n"
        "    registry = CollectorRegistry()\n"
        "    multiprocess.MultiProcessCollector(registry)\n"
        "    print(generate_latest(registry).decode())\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert lines.count('specvlm_plans_total{engine="0",mode="probe",model_name="tiny"} 1.0') == 2
    assert lines.count("others_total 1.0") == 2
    assert _value("specvlm_plans_total", {**ENGINE, "mode": "probe"}) == 1


def test_the_newest_engine_is_shown() -> None:
    exporter.export("tiny")
    older = exporter.metrics()
    older.plan("plain")
    exporter.export("other")
    exporter.metrics().plan("trees")
    older.plan("plain")  # still runs, and counts where nobody looks
    assert _value("specvlm_plans_total", {**ENGINE, "mode": "plain"}) is None
    other = {**ENGINE, "model_name": "other"}
    assert _value("specvlm_plans_total", {**other, "mode": "plain"}) == 0
    assert _value("specvlm_plans_total", {**other, "mode": "trees"}) == 1


def test_no_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs without; what a former engine's worker would find is not taken for its own."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    exporter.export("former")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "posix_fallocate", full)
    exporter.export("tiny")
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert VARIABLE not in os.environ
    metrics = exporter.metrics()
    metrics.plan("trees")
    metrics.tree(8, 3, picture=False, sampled=False)
    assert _value("specvlm_plans_total", {**ENGINE, "mode": "trees"}) is None
    assert not [line for line in generate_latest(REGISTRY).decode().splitlines() if "specvlm_" in line]


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that the environment misleads counts for itself, and writes into nobody's file."""
    other = tmp_path / "other"
    other.write_bytes(bytes(CELLS * 8))
    (tmp_path / "link").symlink_to(other)
    for name in ("", "/proc/999999999/fd/3", str(other), str(tmp_path / "link"), str(tmp_path)):
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(OSError):
            found(CELLS)
        exporter.metrics().plan("trees")
    monkeypatch.delenv(VARIABLE)
    exporter.metrics().plan("trees")
    assert other.read_bytes() == bytes(CELLS * 8)


def test_memory_of_another_version() -> None:
    shared = SharedCells(CELLS + 1)
    with pytest.raises(OSError, match="size"):
        found(CELLS)
    shared.close()


def test_the_server_goes_first() -> None:
    """The worker's memory outlives the process that made it."""
    program = (
        "import os, sys\n"
        "from vllm_specvlm.engine.shared_cells import SharedCells\n"
        "shared = SharedCells(4)\n"
        f"print(os.environ[{VARIABLE!r}], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        os.environ[VARIABLE] = server.stdout.readline().decode().strip()
        cells = found(4)
        server.communicate(b"")
    cells[3] += 1
    assert cells.tolist() == [0, 0, 0, 1]
    with pytest.raises(OSError):
        found(4)


def test_counting_costs_next_to_nothing() -> None:
    """A step with 16 trees."""
    shared = SharedCells(CELLS)
    metrics = Metrics(found(CELLS))
    seconds = {"draft": 1.0, "draft_model": 1.0, "verify": 1.0}
    times = []
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(100):
            metrics.step(True)
            for _ in range(16):
                metrics.tree(16, 5, picture=True, sampled=False)
            metrics.plan("trees")
            metrics.spent(seconds)
        times.append((time.perf_counter() - started) / 100)
    shared.close()
    assert min(times) < 20e-6
