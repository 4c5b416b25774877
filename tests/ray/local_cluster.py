"""A Ray cluster of the tests' own on this machine: small, in a folder of its own, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

_MARK = "SPECVLM_TEST_CLUSTER"
_ROOT = Path(__file__).parents[2]


@contextmanager
def local_cluster(cpus: int, **options: Any) -> Iterator[None]:
    """Start Ray, and at the end stop it and everything it started; fails if something had to be killed for that."""
    mark = uuid.uuid4().hex
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of sockets in it have to be short
    saved = dict(os.environ)
    path = [str(_ROOT), *filter(None, [saved.get("PYTHONPATH")])]
    os.environ |= {_MARK: mark, "PYTHONPATH": os.pathsep.join(path), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    ray.shutdown()  # building an application starts a cluster by itself
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=128 << 20,
            _temp_dir=folder,
            **options,
        )
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        os.environ.clear()
        os.environ |= saved
        left = _ended(mark)
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, f"Ray has ended and these processes have not: {left}"


def processes(title: str) -> list[int]:
    """Process ids of the running cluster whose command line begins with `title`, the oldest first."""
    return [pid for pid, line in sorted(_marked(os.environ[_MARK]).items()) if line.startswith(title)]


def kill(pid: int) -> None:
    """End a process as a machine without memory would."""
    os.kill(pid, signal.SIGKILL)


def wait_for(title: str, count: int, seconds: float = 120) -> list[int]:
    """The processes of that title, as soon as there are so many."""
    until = time.monotonic() + seconds
    while len(found := processes(title)) != count:
        assert time.monotonic() < until, f"{len(found)} of {count} processes '{title}' run after {seconds:.0f} s"
        time.sleep(0.5)
    return found


def _marked(mark: str) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended, or is another user's
            continue
        # Python's resource tracker belongs to the test's own process, or ends with the one it belongs to.
        if marked and line and int(folder.name) != os.getpid() and "resource_tracker" not in line:
            found[int(folder.name)] = line
    return found


def _ended(mark: str) -> list[str]:
    """Wait for every process of the cluster to end, kill those that do not, and name them."""
    for _ in range(60):
        if not _marked(mark):
            return []
        time.sleep(0.5)
    left = _marked(mark)
    for pid in left:
        kill(pid)
    return list(left.values())
