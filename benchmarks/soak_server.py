"""`specvlm serve` in processes of its own: started, watched and ended by a benchmark."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from soak_census import PATH, private_mib

_ROOT = Path(__file__).parent.parent
NAME = "soaked"
"""What the model is called in requests."""
_UNTIL_HEALTHY_S = 600
_UNTIL_ENDED_S = 60


class Server:
    """A running server. `stop` ends it with everything it started."""

    def __init__(self, model: str, speculative: Mapping[str, Any] | None, options: Sequence[str], log: Path) -> None:
        """Start loading; `wait` waits."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        command = [sys.executable, "-m", "vllm_specvlm.cli", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--served-model-name", NAME, "--disable-uvicorn-access-log", *options]
        command += [
            "--middleware",
            "benchmarks.soak_census.Counted",
            "--worker-extension-cls",
            "benchmarks.soak_census.Counting",
        ]
        if speculative is not None:
            command += ["--speculative-config", json.dumps(speculative)]
        environment = {
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "HF_HUB_OFFLINE": "1",
        }
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when it answers. Raises RuntimeError with the end of its log if it does not."""
        until = time.monotonic() + _UNTIL_HEALTHY_S
        while self._process.poll() is None and time.monotonic() < until:
            if self.healthy():
                return
            time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"The server did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def healthy(self) -> bool:
        """Whether it says so itself."""
        try:
            return httpx.get(f"{self.url}/health", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def metrics(self) -> dict[str, float]:
        """Sums over all labels of the samples at /metrics, by name."""
        found: dict[str, float] = {}
        for line in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                name = sample.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def memory_mib(self) -> int:
        """Resident memory of its processes, without what they share."""
        total = 0
        for process in self._processes():
            try:
                total += private_mib(process)
            except OSError:  # ended meanwhile
                continue
        return total

    def census(self) -> dict[str, Any]:
        """What its two large processes hold (`soak_census.census`), by their names `front_end` and `worker`."""
        return dict(httpx.get(f"{self.url}{PATH}", timeout=300).raise_for_status().json())

    def trimmed_mib(self) -> int:
        """Private memory of the two after what their allocators only keep is given back."""
        found: dict[str, int] = httpx.get(f"{self.url}{PATH}/trim", timeout=300).raise_for_status().json()
        return sum(found.values())

    def _processes(self) -> list[int]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                group = int(stat.read_text().rpartition(") ")[2].split()[2])
            except OSError:
                continue
            if group == self._process.pid:
                found.append(int(stat.parent.name))
        return found

    def stop(self) -> None:
        """End it, and kill what does not end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_UNTIL_ENDED_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._processes():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_UNTIL_ENDED_S)
