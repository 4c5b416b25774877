"""Clients of the server: many at once, and what came back in a form that can be compared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.server.process import Server

_PATIENCE = 300.0


@dataclass(frozen=True)
class Answer:
    """What a client got: the HTTP status, and per choice the text, the tokens and why it ended; or the error's text."""

    status: int
    choices: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    logprobs: tuple[Any, ...] = field(default=(), compare=False)
    """Per choice, as they came. Rounding differs with the batch, so they are compared by themselves."""


def _read(response: httpx.Response) -> Answer:
    if response.status_code != 200:
        return Answer(response.status_code, error=response.text)
    content = response.json()
    choices = tuple(
        (choice["message"]["content"] or "", tuple(choice["token_ids"] or ()), choice["finish_reason"])
        for choice in content["choices"]
    )
    usage = content["usage"]
    logprobs = tuple(choice["logprobs"] for choice in content["choices"])
    return Answer(200, choices, usage["prompt_tokens"], usage["completion_tokens"], logprobs=logprobs)


async def asked(server: Server, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """All requests at once, each from a client of its own; answers in order."""
    # vLLM closes the connection after an answer 500, so that none may be used twice.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=_PATIENCE, limits=limits) as client:
        sent = (client.post("/v1/chat/completions", json={**each, "return_token_ids": True}) for each in bodies)
        return [_read(response) for response in await asyncio.gather(*sent)]


def ask(server: Server, *bodies: dict[str, Any]) -> list[Answer]:
    """`asked`, for those who do nothing meanwhile."""
    return asyncio.run(asked(server, bodies))


def metric_types(server: Server) -> dict[str, str]:
    """The types of the metrics at /metrics by name."""
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    declared = [line.split()[2:4] for line in lines if line.startswith("# TYPE")]
    types = dict(declared)
    assert len(types) == len(declared), "a metric appears twice"
    return types


def metrics(server: Server) -> dict[str, float]:
    """The samples of /metrics by name with labels, engine and model left out."""
    found = {}
    for line in httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.replace('engine="0",', "").replace('model_name="tiny"', "").replace("{}", "").replace("{,", "{")
            found[name] = float(value)
    return found
