"""A server that records: what clients sent and got lies in the folder, and a full disk harms nobody."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.client import ask
from tests.server.process import NAME, Server
from tests.server.questions import good
from tests.tiny.checkpoints import build
from vllm_specvlm.draft import target_id
from vllm_specvlm.traffic.log_folder import LogFolder
from vllm_specvlm.train.traffic_source import TrafficSource


def wait_for(log: LogFolder, count: int) -> list[str]:
    """The names of so many exchanges; answers are out before they are written."""
    end = time.monotonic() + 30
    while len(log.names()) < count and time.monotonic() < end:
        time.sleep(0.1)
    return log.names()


async def streamed(server: Server, body: dict[str, Any], pieces: int | None = None) -> str:
    """The text of a stream, or of its first pieces: then the client hangs up."""
    text = ""
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
        client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response,
    ):
        async for line in response.aiter_lines():
            text += line + "\n"
            if pieces is not None and text.count("data: ") > pieces:
                break
    return text


@pytest.mark.slow  # a server of its own
def test_a_server_records(tmp_path: Path) -> None:
    log = LogFolder(tmp_path / "log")
    server = Server(
        build("llava"), {"num_speculative_tokens": 8}, tmp_path / "server.log", options=["--record", str(log.folder)]
    )
    try:
        server.wait_until_healthy()
        bodies = good()
        answers = ask(server, *bodies.values())
        assert all(answer.status == 200 for answer in answers)
        names = wait_for(log, len(bodies))
        assert len(names) == len(bodies)
        said = {(answer.choices[0][0],) for answer in answers}
        found = [log.read(name) for name in names]
        assert {tuple(part["text"] for part in messages[-1]["content"]) for _, messages, _ in found} == said
        assert all(not (target := target_id.of_folder(build("llava"))).differs(theirs) for theirs, *_ in found), target
        source = TrafficSource(log.folder)
        assert source.damaged == 0

        body = {"model": NAME, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 24}
        asyncio.run(streamed(server, body))
        assert len(wait_for(log, len(bodies) + 1)) == len(bodies) + 1
        asyncio.run(streamed(server, {**body, "max_tokens": 440, "ignore_eos": True}, pieces=2))
        time.sleep(1)
        assert len(log.names()) == len(bodies) + 1, "an answer that broke off was recorded"

        (log.folder / "exchanges").rename(log.folder / "away")  # the next file cannot be written
        assert all(answer.status == 200 for answer in ask(server, *bodies.values()))
        time.sleep(1)
        assert all(answer.status == 200 for answer in ask(server, *bodies.values()))
        complaints = [line for line in server.log.read_text().splitlines() if "Recording failed" in line]
        assert len(complaints) == 1
    finally:
        server.stop()
