"""`specvlm serve` as a process of its own: started, watched, and ended with everything it started."""

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

NAME = "tiny"
"""What the models are called in requests."""

_OPTIONS = (
    *("--host", "127.0.0.1", "--served-model-name", NAME),
    *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--kv-cache-memory-bytes", str(64 << 20)),
    *("--max-model-len", "512", "--max-num-seqs", "96", "--limit-mm-per-prompt", '{"image": 2}'),
)
# These stand in tests/conftest.py for engines inside the test's process; a user's server has vLLM's own choice.
_NOT_FOR_SERVERS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(model: Path, speculative: Mapping[str, Any] | None, port: int, options: Sequence[str] = ()) -> list[str]:
    """The command line of a server."""
    line = [sys.executable, "-m", "vllm_specvlm.cli", "serve", str(model), "--port", str(port), *_OPTIONS, *options]
    if speculative is not None:
        line += ["--speculative-config", json.dumps({"method": "specvlm", **speculative})]
    return line


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: the tests' own, on every core, one thread, and what else is given."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_SERVERS}
    return {**kept, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", **(more or {})}


class Server:
    """A running server. `stop` must be called; it also kills what does not end by itself."""

    def __init__(
        self,
        model: Path,
        speculative: Mapping[str, Any] | None,
        log: Path,
        *,
        port: int | None = None,
        variables: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.log = log
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command(model, speculative, self.port, options),
                env=environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its own process group, to find every descendant by
            )

    def wait_until_healthy(self, seconds: float = 300) -> None:
        """Return when the server answers; fail with its log if it ends or takes longer."""
        for _ in range(int(seconds)):
            if self.healthy():
                return
            if self.process.poll() is not None:
                raise AssertionError(f"The server ended with {self.process.returncode}:\n{self.tail()}")
            time.sleep(1)
        raise AssertionError(f"The server is not up after {seconds:.0f} s:\n{self.tail()}")

    def healthy(self) -> bool:
        """Whether the engine behind the server lives."""
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit status; fails if the server does not end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def descendants(self) -> list[int]:
        """Process ids in the server's group that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
            except OSError:  # ended meanwhile
                continue
            if int(group) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found

    def stop(self) -> None:
        """End the server, and kill what is left of it."""
        try:
            if self.process.poll() is None:
                self.terminate()
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.descendants():
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def complaints(self) -> list[str]:
        """Lines of the log that only an error of this package writes: its frames in tracebacks, a failed drafter.

        vLLM's own tracebacks are no such lines: it logs one for a picture it cannot fetch, and often at the end.
        """
        signs = ("/vllm_specvlm/", "The drafter failed")
        return [
            line for line in self.log.read_text(errors="replace").splitlines() if any(sign in line for sign in signs)
        ]

    def tail(self, lines: int = 80) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
