"""The server's front with replicas that break off in every way a list of chunks allows; no cluster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")

from ray.serve.llm.ingress import OpenAiIngress

from tests.ray.test_spliced_stream import TOKENS, chat, event, received
from vllm_specvlm.cluster import ingress
from vllm_specvlm.cluster.spliced_stream import DONE

DEATH = event({"error": {"message": "EngineCore encountered an issue", "code": 500}})
SPLIT = random.Random(1)


def lists(events: list[str]) -> list[list[str]]:
    """As replicas hand them out: all that came within some milliseconds together."""
    found: list[list[str]] = [[]]
    for each in events:
        if found[-1] and SPLIT.random() < 0.4:
            found.append([])
        found[-1].append(each)
    return found


def told(attempts: list[list[Any]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a client of the front gets if its request meets these, one after the other."""
    left = iter(attempts)

    async def stock(self: Any, **_: Any) -> AsyncIterator[Any]:
        for response in next(left):
            yield response

    async def listen() -> str:
        front = ingress.Ingress.__new__(ingress.Ingress)
        body = SimpleNamespace(stream=True, seed=None)
        return "".join([piece async for piece in front._get_response(body=body, call_method="chat")])

    monkeypatch.setattr(OpenAiIngress, "_get_response", stock)
    monkeypatch.setattr(ingress, "_PAUSE", 0.0)
    return asyncio.run(listen())


def test_text_before_a_death_in_the_same_list_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, beside its neighbours, or several events in one string."""
    for seed in range(100):
        rng = random.Random(seed)
        attempts: list[list[Any]] = []
        for number in range(3):
            events = chat(rng, f"attempt {number}")
            broken = lists([*events[: rng.randrange(len(events))], DEATH, DONE])
            attempts.append(["".join(each) for each in broken] if number == 1 else list(broken))
        attempts.append(list(lists(chat(rng, "the last"))))
        found = received(told(attempts, monkeypatch))
        for choice in found["choices"].values():
            assert choice["text"] == "".join(TOKENS) and choice["token_ids"] == list(range(len(TOKENS)))
            assert choice["ends"] == ["length"] and choice["roles"] == 1
        assert len(found["choices"]) == 2 and len(found["heads"]) == 1 and found["done"] == 1


def test_a_stream_that_nobody_can_finish_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    events = chat(random.Random(0), "a")
    said = told([[[*events[:3], DEATH, DONE]]] * ingress._ATTEMPTS, monkeypatch)
    assert "cannot be continued (EngineCore encountered an issue); ask again" in said
    assert said.count(DONE) == 1 and said.endswith(DONE) and events[0] in said
