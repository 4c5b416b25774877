"""The environment of every test: quiet, offline, one thread, nothing outside the checkout's temporary folders.

pytest imports this file before any test module, and so before anything imports vLLM or torch, which read these
variables once.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

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
