"""What a client of the server sees: time to first token, time per token, whole answers; plain vLLM and ours.

Every method is a `specvlm serve` of its own. They are asked the same streamed chats in turn, one at a time, and stand
still otherwise. `ttft_ratio` is the median over the questions of the ratio of ours to plain vLLM's: drafting begins
only after the first token is out, so it should be 1.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import held_out
from machine import write_report


@dataclass(frozen=True)
class Answer:
    """One streamed answer; times in milliseconds from the request on."""

    text: str
    first_ms: float
    last_ms: float
    tokens: int

    @property
    def tpot_ms(self) -> float:
        """Per token after the first."""
        return (self.last_ms - self.first_ms) / max(1, self.tokens - 1)


class Server:
    """`specvlm serve` on a free port of this machine."""

    def __init__(
        self, target: str, dtype: str, speculative: dict[str, Any] | None, log: Path, options: Sequence[str] = ()
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [sys.executable, "-m", "vllm_specvlm.cli", "serve", target, "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--served-model-name", "model", "--dtype", dtype, "--enforce-eager"]
        command += ["--max-model-len", "1024", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(256 << 20)]
        command += ["--no-enable-prefix-caching", *options]
        if speculative is not None:
            command += ["--speculative-config", json.dumps(speculative)]
        environment = {**os.environ, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def wait(self) -> None:
        """Return when it answers. Raises RuntimeError if it ends before."""
        while self.process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == http.client.OK:
                    return
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"The server ended with status {self.process.returncode}; see its log.")

    def ask(self, messages: Sequence[dict[str, Any]], max_tokens: int) -> Answer:
        """A greedy streamed chat."""
        body = {
            "model": "model",
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text, first, last, tokens = "", 0.0, 0.0, 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            said = event["choices"][0]["delta"].get("content") if event["choices"] else None
            if said:
                last = 1e3 * (time.perf_counter() - started)
                first = first or last
                text += said
        return Answer(text, first, last, tokens)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def chat(asked: held_out.Asked) -> list[dict[str, Any]]:
    """The messages with the picture in them, as a data URL."""
    buffer = io.BytesIO()
    asked.picture.save(buffer, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url}}
    return [
        {**message, "content": [shown if part["type"] == "image" else part for part in message["content"]]}
        for message in asked.messages
    ]


def row(name: str, mine: Sequence[Answer], plain: Sequence[Answer]) -> dict[str, Any]:
    """One method compared with plain vLLM, question by question."""
    pairs = list(zip(mine, plain, strict=True))
    long = [(a, b) for a, b in pairs if b.tokens > 1]
    return {
        "method": name,
        "ttft_ms": round(statistics.median(a.first_ms for a in mine), 2),
        "ttft_ratio": round(statistics.median(a.first_ms / b.first_ms for a, b in pairs), 4),
        "tpot_ms": round(statistics.median(a.tpot_ms for a, _ in long), 3),
        "tpot_speedup": round(statistics.median(b.tpot_ms / a.tpot_ms for a, b in long), 3),
        "e2e_speedup": round(statistics.median(b.last_ms / a.last_ms for a, b in pairs), 3),
        "identical": all(a.text == b.text for a, b in pairs),
        "answers": len(pairs),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--drafts", nargs="+", default=["specvlm/reference-draft", "specvlm/reference-head"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--logs", type=Path, default=Path(), help="folder of the servers' logs")
    parser.add_argument("--quick", action="store_true", help="12 questions")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    chats = [chat(each) for each in held_out.questions(arguments.target, arguments.prompts, seed=5)]
    if arguments.quick:
        chats = chats[:12]
    methods: dict[str, dict[str, Any] | None] = {"plain": None}
    methods |= {draft: {"method": "specvlm", "model": draft} for draft in arguments.drafts}
    servers: dict[str, Server] = {}
    answers: dict[str, list[Answer]] = {name: [] for name in methods}
    try:
        for name, speculative in methods.items():
            log = arguments.logs / f"{name.rpartition('/')[2]}.log"
            servers[name] = Server(arguments.target, arguments.dtype, speculative, log)
            servers[name].wait()
        for messages in (*chats[:4], *chats):  # the first four warm up
            for name, server in servers.items():
                answers[name].append(server.ask(messages, arguments.max_tokens))
    finally:
        for server in servers.values():
            server.stop()
    table = [row(name, given[4:], answers["plain"][4:]) for name, given in answers.items()]
    for each in table:
        print(
            f"{each['method']:28} TTFT {each['ttft_ms']:8.1f} ms ({each['ttft_ratio']:.3f}x)   "
            f"TPOT {each['tpot_speedup']:.2f}x   end to end {each['e2e_speedup']:.2f}x   identical {each['identical']}"
        )
    if arguments.json:
        write_report(arguments.json, "server", argv, {"dtype": arguments.dtype, "compiled": False}, table)


if __name__ == "__main__":
    main()
