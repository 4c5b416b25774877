"""Many streams at once through the `openai` package: in order, whole, counted right, and closed when clients leave."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from tests.server.client import metrics
from tests.server.hall import Reference
from tests.server.process import NAME, Server
from tests.server.questions import body, good
from tests.server.test_crowd import wait_until_idle

pytestmark = pytest.mark.slow  # two servers of three processes

STREAMS = 72


@dataclass
class Heard:
    """What one client heard of its stream."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    bursts: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


async def listen(client: openai.AsyncOpenAI, question: dict[str, Any], leave_after: int | None = None) -> Heard:
    """One stream from its beginning to its end, or until so many pieces of it came."""
    heard = Heard()
    stream: Any = await client.chat.completions.create(
        model=NAME,
        messages=question["messages"],
        temperature=0,
        max_tokens=question["max_tokens"],
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    pieces = 0
    async for piece in stream:
        pieces += 1
        assert piece.usage.completion_tokens >= heard.completion_tokens, "tokens were taken back"
        heard.completion_tokens, heard.prompt_tokens = piece.usage.completion_tokens, piece.usage.prompt_tokens
        for choice in piece.choices:
            new = getattr(choice, "token_ids", None) or []
            heard.text += choice.delta.content or ""
            heard.tokens += new
            heard.bursts.append(len(new))
            heard.ends += [choice.finish_reason] if choice.finish_reason else []
            assert piece.usage.completion_tokens == len(heard.tokens)
        if pieces == leave_after:
            await stream.close()
            break
    return heard


def client_of(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)


def test_many_streams_at_once(always_server: Server, reference: Reference, media: str) -> None:
    """Pictures as base64 and behind a URL, and texts."""
    questions = {**good(), "url": body(f"{media}/whole.png", " what is this?")}
    names = [name for _, name in zip(range(STREAMS), list(questions) * STREAMS, strict=False)]

    async def scene() -> list[Heard]:
        async with client_of(always_server) as client:
            return await asyncio.gather(*(listen(client, questions[name]) for name in names))

    heard = asyncio.run(scene())
    for name, each in zip(names, heard, strict=True):
        expected = reference.good["picture" if name == "url" else name]
        text, tokens, ended = expected.choices[0]
        assert (each.text, tuple(each.tokens), each.ends) == (text, tokens, [ended]), name
        assert (each.prompt_tokens, each.completion_tokens) == (expected.prompt_tokens, len(tokens))
    assert max(max(each.bursts) for each in heard) > 1, "no step brought more than one token"


def test_streams_that_are_closed(always_server: Server, reference: Reference) -> None:
    """The engine stops working for whoever left, and goes on for those who stayed."""
    before = metrics(always_server)
    names = list(good()) * 3

    async def scene() -> list[Heard]:
        async with client_of(always_server) as client:
            leaving = [
                listen(client, {**good()[name], "max_tokens": 300}, pieces) for pieces, name in enumerate(names, 2)
            ]
            staying = [listen(client, good()[name]) for name in names]
            heard = await asyncio.gather(*leaving, *staying)
        return heard[len(leaving) :]

    for name, each in zip(names, asyncio.run(scene()), strict=True):
        assert tuple(each.tokens) == reference.good[name].choices[0][1], name
    wait_until_idle(always_server)
    after = metrics(always_server)
    generated = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    assert generated < 300 * len(names), "answers nobody waits for were finished"
    assert after["vllm:kv_cache_usage_perc"] == 0
