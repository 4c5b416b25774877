"""The Serve application on a tiny model, and clients that ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from vllm import SamplingParams

from tests.exactness.engines import engine
from tests.server.process import NAME, free_port
from tests.server.questions import body, data_url, encoded
from tests.tiny.checkpoints import DRAFT, build
from tests.tiny.prompts import picture

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "speculative_config": {
        "method": "specvlm",
        "model": str(build("llava", seed=7, size=DRAFT)),
        "num_speculative_tokens": 8,
        "planner": False,
    },
}
MODEL = str(build("llava"))
__all__ = ["ENGINE", "MODEL", "NAME", "Reply", "ask", "crowd", "free_port", "plain", "questions"]

_PROMPTS = (" what is this?", " which is red?", " tell the tale of the red tree")


@dataclass(frozen=True)
class Reply:
    """What a client was told."""

    text: str
    tokens: tuple[int, ...]
    ends: tuple[str, ...]


def questions(count: int, tokens: int = 64) -> list[dict[str, Any]]:
    """Greedy chats about pictures, every other one streamed."""
    return [
        body(
            data_url(encoded(picture(number))),
            _PROMPTS[number % len(_PROMPTS)],
            max_tokens=tokens,
            stream=bool(number % 2),
            return_token_ids=True,
        )
        for number in range(count)
    ]


def plain(asked: Sequence[dict[str, Any]]) -> list[Reply]:
    """What plain vLLM, in this process, answers."""
    llm = engine(build("llava"))
    params = [SamplingParams(temperature=0, max_tokens=each["max_tokens"], ignore_eos=True) for each in asked]
    outputs = llm.chat([each["messages"] for each in asked], params, use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    return [Reply(answer.text, tuple(answer.token_ids), (str(answer.finish_reason),)) for answer in answers]


async def ask(
    client: httpx.AsyncClient, question: dict[str, Any], watch: Callable[[str], None] = lambda _: None
) -> Reply | str:
    """The reply to a question, or what went wrong, in words. Asks once; `watch` sees the lines of a stream."""
    try:
        if question["stream"]:
            return await _streamed(client, question, watch)
        response = await client.post("/v1/chat/completions", json=question)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text}"
    (choice,) = response.json()["choices"]
    return Reply(choice["message"]["content"], tuple(choice["token_ids"]), (choice["finish_reason"],))


async def _streamed(client: httpx.AsyncClient, question: dict[str, Any], watch: Callable[[str], None]) -> Reply | str:
    text, done = "", 0
    tokens: tuple[int, ...] = ()
    ends: tuple[str, ...] = ()
    async with client.stream("POST", "/v1/chat/completions", json=question) as response:
        if response.status_code != 200:
            return f"status {response.status_code}: {(await response.aread()).decode()}"
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            watch(line)
            if line == "data: [DONE]":
                done += 1
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return f"in the stream: {chunk['error']}"
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                tokens += tuple(choice.get("token_ids") or ())
                ends += (choice["finish_reason"],) if choice["finish_reason"] else ()
    return Reply(text, tokens, ends) if done == 1 else f"a stream ended {done} times"


async def crowd(url: str, asked: Sequence[dict[str, Any]], during: Any = None) -> list[Reply | str]:
    """All questions at once; `during` is called in a thread as soon as every client has sent its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        asking = [asyncio.create_task(ask(client, question)) for question in asked]
        if during is not None:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(during)
        return await asyncio.gather(*asking)
