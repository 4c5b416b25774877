"""A picture whose first request comes to nothing, or is overtaken: the next one with it is answered all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.server.client import ask
from tests.server.hall import Hall
from tests.server.process import Server
from tests.server.questions import body, data_url, encoded
from tests.tiny.prompts import picture

pytestmark = pytest.mark.slow  # two servers of three processes


def about(seed: int, **options: Any) -> dict[str, Any]:
    return body(data_url(encoded(picture(seed, 84, 56))), " what is this?", **{"max_tokens": 8, **options})


def statuses_after_a_refused_one(server: Server) -> list[int]:
    """Of a request that is refused when its picture has been processed, and of two good ones with the same picture."""
    return [ask(server, each)[0].status for each in (about(701, temperature=-1), about(701), about(701))]


async def crowd(server: Server, bodies: list[dict[str, Any]]) -> list[int]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in bodies))
    return [answer.status_code if "error" not in answer.text else 500 for answer in answers]


def statuses_in_a_burst(server: Server) -> list[int]:
    """Three requests for each of a hundred new pictures, streams first: the others have a shorter way to the engine."""
    bodies = [about(800 + number // 3, stream=number % 3 == 0) for number in range(300)]
    return asyncio.run(crowd(server, bodies))


def test_plain_vllm_loses_them(hall: Hall) -> None:
    """The control. It answers the first good one with status 500, and some two hundred of the burst."""
    server = hall.server("plain")
    assert statuses_after_a_refused_one(server) == [400, 500, 200]
    assert statuses_in_a_burst(server).count(500) > 10
    assert "cache miss" in server.log.read_text(errors="replace")


@pytest.mark.parametrize("kind", ["always", "lookup"])
def test_we_do_not(kind: str, hall: Hall) -> None:
    server = hall.server(kind)
    assert statuses_after_a_refused_one(server) == [400, 200, 200]
    assert statuses_in_a_burst(server) == [200] * 300
    assert "cache miss" not in server.log.read_text(errors="replace")
