"""Many clients at once, some of them with broken pictures, some of whom leave."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.server.client import Answer, ask, asked, metrics
from tests.server.hall import Hall, Reference
from tests.server.process import Server
from tests.server.questions import bad_pictures, good

pytestmark = pytest.mark.slow  # two servers of three processes


@pytest.mark.parametrize("kind", ["always", "draft"])
def test_more_than_64_clients(kind: str, hall: Hall, reference: Reference) -> None:
    """Seven questions over five pictures, twelve clients each. The planner need not draft for so many."""
    server = hall.server(kind)
    crowd = list(good()) * 12
    before = metrics(server)
    answers = ask(server, *(good()[name] for name in crowd))
    assert _differing(crowd, answers, reference) == []
    after = metrics(server)
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == 40 * len(crowd)
    accepted = "vllm:spec_decode_num_accepted_tokens_total"
    assert kind == "draft" or after[accepted] > before[accepted] + len(crowd)


def test_broken_pictures_in_a_busy_batch(server: Server, reference: Reference, media: str) -> None:
    """Who sends one gets the error that plain vLLM gives; nobody else notices."""
    crowd = list(good()) * 4
    broken = bad_pictures(media)
    questions: list[dict[str, Any]] = [good()[name] for name in crowd]
    half = len(questions) // 2
    answers = ask(server, *questions[:half], *broken.values(), *questions[half:])
    failed = dict(zip(broken, answers[half : half + len(broken)], strict=True))
    others = answers[:half] + answers[half + len(broken) :]
    assert _differing(crowd, others, reference) == []
    statuses = {name: answer.status for name, answer in failed.items()}
    assert statuses == {name: answer.status for name, answer in reference.bad.items()}
    assert all(400 <= status < 600 for status in statuses.values())
    assert all('"message":"' in answer.error for answer in failed.values())
    assert server.healthy()
    assert ask(server, good()["picture"])[0] == reference.good["picture"]


def test_clients_who_leave(server: Server, reference: Reference) -> None:
    """Streams that are closed after some pieces, and requests given up before their answer."""
    crowd = list(good()) * 3

    async def scene() -> list[Answer]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            leaving = [_leave(client, good()[name], pieces) for pieces, name in enumerate(list(good()) * 2)]
            answers, *_ = await asyncio.gather(asked(server, [good()[name] for name in crowd]), *leaving)
        return answers

    assert _differing(crowd, asyncio.run(scene()), reference) == []
    wait_until_idle(server)
    assert server.healthy()
    assert ask(server, good()["picture"])[0] == reference.good["picture"]


async def _leave(client: httpx.AsyncClient, question: dict[str, Any], pieces: int) -> None:
    """Ask for a very long answer and hang up after some pieces; after none: before the answer begins."""
    long = {**question, "max_tokens": 300, "stream": pieces > 0}
    if not pieces:
        with pytest.raises(httpx.TimeoutException):
            await client.post("/v1/chat/completions", json=long, timeout=0.2)
        return
    async with client.stream("POST", "/v1/chat/completions", json=long) as response:
        assert response.status_code == 200
        seen = 0
        async for line in response.aiter_lines():
            seen += line.startswith("data:")
            if seen == pieces:
                return


def wait_until_idle(server: Server) -> None:
    """The engine works no longer for those who left."""
    for _ in range(60):
        found = metrics(server)
        if found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0:
            return
        time.sleep(0.5)
    raise AssertionError(f"Requests still run 30 s after their clients left: {found['vllm:num_requests_running']:.0f}")


def _differing(names: list[str], answers: list[Answer], reference: Reference) -> list[tuple[int, str, Answer]]:
    return [
        (at, name, answer)
        for at, (name, answer) in enumerate(zip(names, answers, strict=True))
        if answer != reference.good[name]
    ]
