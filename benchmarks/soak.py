"""Thousands of requests through the HTTP server: is any lost, answered twice, or answered otherwise than by plain vLLM?

Waves of clients, a few at a time and several hundred at once, ask about pictures and in text, greedily and sampled,
streaming and not. Some hang up in the middle. The KV cache is too small for all of them, so that requests are
preempted. Afterwards nothing may run, no KV block may be held, and memory may hardly have grown in the last round.

A greedy answer must be that of plain vLLM, token for token, or leave it at a near-tie: there plain vLLM's two best
tokens were at most 0.001 apart in log-probability, and the other one was taken. Sampled answers with one seed must be
the same in every wave.

Exit status 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from machine import write_report
from soak_census import NAMED
from soak_judge import Judge, PlainAnswer
from soak_models import reference, tiny
from soak_server import NAME, Server

_WAVES = (16, 400, 64, 20)
"""Clients at once, wave by wave, in a round of 500 requests."""
_QUICK_WAVES = (8, 80, 12)
_LONGEST = 96
_LENGTHS = (1, 8, 24, 48, _LONGEST)
_SEEDS = 24
"""Sampled requests come in so many kinds, each asked several times."""
_METHODS = {
    "plain": None,
    "draft": {"model": "draft"},
    "head": {"model": "head"},
    "lookup": {},
    "draft-trees": {"model": "draft", "planner": False, "num_speculative_tokens": 8},
    "head-trees": {"model": "head", "planner": False, "num_speculative_tokens": 8},
}
"""By name: under the planner, and with trees in every step. Plain vLLM shows what is its own doing."""
_LOG_LINES = 60
_numbers = itertools.count()
"""Of all requests, which have names of their own."""
_TRIES = 3
"""As often as the `openai` package asks when the answer is status 500."""
_CACHE_MISS = "Multi-modal cache miss for request"
"""Plain vLLM's warning: its two processes disagree about which pictures they have in common
(https://github.com/vllm-project/vllm/issues/31404). The client gets status 500 and may ask again. With method `specvlm`
it cannot happen (`vllm_specvlm/engine/processed_pictures.py`)."""


@dataclass(frozen=True)
class Question:
    """What is asked: texts and pictures, as the content of a message."""

    content: tuple[dict[str, Any], ...]
    picture: bool


@dataclass(frozen=True)
class Request:
    """One client's wish."""

    question: int
    tokens: int
    stream: bool
    seed: int | None
    """None: greedy."""
    leaves_after: int | None
    """Hangs up after so many tokens, 0: before the first."""


@dataclass
class Heard:
    """What the client got."""

    tokens: list[int] = field(default_factory=list)
    ends: int = 0
    """How often the answer ended."""
    counted: int = 0
    """Tokens of the answer by the server's own account."""
    left: bool = False
    error: str = ""
    retries: int = 0
    """How often status 500 came first."""


def questions(count: int) -> list[Question]:
    """A third text alone, some with two pictures; pictures repeat."""
    from vllm_specvlm import zoo

    drawn = zoo.prompts(max(4, count // 5), seed=11)
    pictures = [_shown(prompt.picture) for prompt in drawn]
    chance = random.Random(0)
    made = []
    for number in range(count):
        prompt = chance.choice(drawn)
        text = {"type": "text", "text": f"{prompt.question} ({number})"}
        shown = [] if number % 3 == 2 else [chance.choice(pictures) for _ in range(2 if number % 7 == 0 else 1)]
        made.append(Question((*shown, text), bool(shown)))
    return made


def _shown(picture: Any) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def traffic(count: int, pool: int, waves: Sequence[int]) -> list[list[Request]]:
    """Waves of requests, `count` in all; every sixth is sampled, every eighth hangs up."""
    chance = random.Random(1)
    made: list[list[Request]] = []
    left = count
    while left:
        size = min(left, waves[len(made) % len(waves)])
        wave = []
        for _ in range(size):
            seed = chance.randrange(_SEEDS) if chance.random() < 1 / 6 else None
            leaves = chance.choice((0, 1, 4, 20)) if chance.random() < 1 / 8 else None
            question = chance.randrange(pool) if seed is None else seed % pool
            tokens = _LONGEST if leaves is not None else chance.choice(_LENGTHS)
            wave.append(Request(question, tokens, leaves is not None or chance.random() < 0.7, seed, leaves))
        made.append(wave)
        left -= size
    return made


def body(question: Question, tokens: int, **more: Any) -> dict[str, Any]:
    """A greedy chat request."""
    return {
        "model": NAME,
        "messages": [{"role": "user", "content": list(question.content)}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


async def ask(client: httpx.AsyncClient, question: Question, request: Request, name: str) -> Heard:
    """Send one request and listen; again after status 500, as the `openai` package does."""
    for retries in range(_TRIES):
        heard = await _ask_once(client, question, request, f"{name}-{next(_numbers)}")
        heard.retries = retries
        if not heard.error.startswith("status 500") or heard.tokens:
            break
    return heard


async def _ask_once(client: httpx.AsyncClient, question: Question, request: Request, name: str) -> Heard:
    more: dict[str, Any] = {} if request.seed is None else {"temperature": 1.0, "seed": request.seed}
    content = body(question, request.tokens, stream=request.stream, request_id=name, **more)
    heard = Heard()
    try:
        if not request.stream:
            response = await client.post("/v1/chat/completions", json=content)
            if response.is_success:
                _hear(heard, response.json())
            else:
                heard.error = f"status {response.status_code}: {response.text}"
            return heard
        content["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        async with client.stream("POST", "/v1/chat/completions", json=content) as response:
            if not response.is_success:
                await response.aread()
                heard.error = f"status {response.status_code}: {response.text}"
                return heard
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _hear(heard, json.loads(line.removeprefix("data: ")))
                if request.leaves_after is not None and len(heard.tokens) >= request.leaves_after:
                    heard.left = True
                    return heard
    except httpx.HTTPError as error:
        heard.error = repr(error)
    return heard


def _hear(heard: Heard, piece: dict[str, Any]) -> None:
    """Take in a whole answer, or one piece of a stream."""
    if "error" in piece:
        heard.error = str(piece["error"])
        return
    heard.counted = (piece.get("usage") or {}).get("completion_tokens", heard.counted)
    for choice in piece["choices"]:
        heard.tokens += choice.get("token_ids") or []
        heard.ends += choice.get("finish_reason") is not None


async def crowd(url: str, pool: Sequence[Question], wave: Sequence[Request], name: str = NAMED) -> list[Heard]:
    """All requests of a wave at once, each with a connection of its own; their names begin with `name`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=1800, limits=limits) as client:
        return await asyncio.gather(*(ask(client, pool[request.question], request, name) for request in wave))


async def watched(server: Server, pool: Sequence[Question], wave: Sequence[Request]) -> tuple[list[Heard], int]:
    """As `crowd`, and in how many places the census meanwhile found names of its requests: it has to find some."""
    asking = asyncio.create_task(crowd(server.url, pool, wave))
    places = 0
    while not asking.done():
        await asyncio.sleep(1.0)
        places = max(places, len(held([await asyncio.to_thread(server.census)])))
    return await asking, places


def held(counted: Sequence[dict[str, Any]]) -> list[str]:
    """Where names of requests are held by these censuses."""
    return [where for census in counted for process in census.values() for where in process["requests_held"]]


async def plain_answers(url: str, pool: Sequence[Question]) -> list[PlainAnswer]:
    """What plain vLLM says to every question, and how near its second choices were."""
    limit = asyncio.Semaphore(48)
    asked = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}

    async def answer(client: httpx.AsyncClient, question: Question) -> PlainAnswer:
        async with limit:
            response = await client.post("/v1/chat/completions", json=body(question, _LONGEST, **asked))
        response.raise_for_status()
        (choice,) = response.json()["choices"]
        return PlainAnswer.read(choice)

    async with httpx.AsyncClient(base_url=url, timeout=1800) as client:
        return await asyncio.gather(*(answer(client, question) for question in pool))


def settle(server: Server) -> dict[str, float]:
    """Wait until nothing runs (those who hung up are noticed late); the metrics then."""
    for _ in range(240):
        found = server.metrics()
        if found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0:
            break
        time.sleep(0.5)
    return found


def soak(
    server: Server, pool: Sequence[Question], waves: Sequence[Sequence[Request]], a_round: int, judge: Judge
) -> Any:
    """All waves, judged; a row of the report."""
    asyncio.run(crowd(server.url, pool, [Request(i, 8, False, None, None) for i in range(4)]))
    before, memory, counted, started = settle(server), [server.memory_mib()], [server.census()], time.monotonic()
    places = 0
    for number, wave in enumerate(waves, 1):
        if number == 2:  # the large one, which takes a while
            answers, places = asyncio.run(watched(server, pool, wave))
        else:
            answers = asyncio.run(crowd(server.url, pool, wave))
        for request, heard in zip(wave, answers, strict=True):
            judge.hear(request, heard)
        judge.unhealthy += not server.healthy()
        if number % a_round == 0:
            # The latest batch that was drafted for may still be looked at, so others take its place.
            asyncio.run(
                crowd(server.url, pool, [Request(i % len(pool), 24, False, None, None) for i in range(16)], "last")
            )
            settle(server)
            memory.append(server.memory_mib())
            counted.append(server.census())
            print(f"  {judge.requests} requests, {time.monotonic() - started:.0f} s, {memory[-1]} MiB", flush=True)
    after = settle(server)
    grown = {name: int(value - before.get(name, 0.0)) for name, value in after.items()}
    return {
        **judge.row(),
        "most_at_once": max(len(wave) for wave in waves),
        "preemptions": grown["vllm:num_preemptions_total"],
        "tokens": grown["vllm:generation_tokens_total"],
        "drafts": grown.get("vllm:spec_decode_num_drafts_total", 0),
        "accepted": grown.get("vllm:spec_decode_num_accepted_tokens_total", 0),
        "picture_cache_misses": server.log.read_text(errors="replace").count(_CACHE_MISS),
        "drafter_off": int(after.get("specvlm_drafter_off", 0)),
        "running_at_the_end": int(after["vllm:num_requests_running"] + after["vllm:num_requests_waiting"]),
        "kv_cache_used_at_the_end": after["vllm:kv_cache_usage_perc"],
        "private_memory_mib": memory,
        "private_memory_trimmed_mib": server.trimmed_mib(),
        "held_while_running": places,
        "census": counted,
        "seconds": round(time.monotonic() - started),
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row; empty if it passed."""
    nothing = ("lost", "twice", "different", "sampled_different", "unhealthy", "drafter_off", "running_at_the_end")
    found = [f"{name}: {row[name]}" for name in (*nothing, "kv_cache_used_at_the_end") if row[name]]
    excused = row["picture_cache_misses"] if row["method"] == "plain" else 0
    if row["retries"] > excused:
        found.append(f"status 500 came {row['retries']} times")
    memory = row["private_memory_mib"]
    # Caches fill and the allocator makes arenas, plain vLLM's too, ever more slowly; a leak would go on as it began.
    if len(memory) > 2 and memory[-1] - memory[-2] > max(0.04 * memory[-1], (memory[1] - memory[0]) / 2):
        found.append(f"private memory grew from {memory[-2]} to {memory[-1]} MiB in the last round")
    if left := held(row["census"]):
        found.append(f"requests that are over are held at {', '.join(left[:5])}")
    if not row["held_while_running"]:
        found.append("the census did not see the requests that ran")
    if not row["preemptions"]:
        found.append("nothing was preempted: the KV cache is too large for this test")
    return found


def speculative(method: str, models: dict[str, str]) -> dict[str, Any] | None:
    """The configuration of a method, None for plain vLLM."""
    chosen = _METHODS[method]
    if chosen is None:
        return None
    named = {"model": models[chosen["model"]]} if "model" in chosen else {}
    return {"method": "specvlm", **chosen, **named}


def errors(log: Path) -> str:
    """What the server's log says of errors."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
    return "\n".join(lines[-_LOG_LINES:])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("tiny", "reference"), default="tiny")
    parser.add_argument("--methods", nargs="+", choices=_METHODS, default=["draft-trees", "head-trees"])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--questions", type=int, help="different ones; a fifth of --requests unless given")
    parser.add_argument("--quick", action="store_true", help="200 requests, 80 at once")
    parser.add_argument("--blocks", type=int, default=200, help="KV blocks of 32 tokens, few enough for preemptions")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.requests, arguments.blocks = 200, 50
    arguments.questions = arguments.questions or arguments.requests // 5
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Plain vLLM's answers first, then one method after the other."""
    arguments = parse(argv)
    models = tiny() if arguments.models == "tiny" else reference()
    waves = _QUICK_WAVES if arguments.quick else _WAVES
    pool = questions(arguments.questions)
    options = [
        *("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "512"),
        *("--max-num-seqs", "256", "--num-gpu-blocks-override", str(arguments.blocks)),
        *("--kv-cache-memory-bytes", str(1 << 30)),
        *("--limit-mm-per-prompt", '{"image": 2}'),
    ]
    rows = []
    with tempfile.TemporaryDirectory(prefix="specvlm-soak-") as folder:

        def serve(method: str) -> Server:
            server = Server(models["target"], speculative(method, models), options, Path(folder) / f"{method}.log")
            server.wait()
            return server

        plain = serve("plain")
        try:
            answers = asyncio.run(plain_answers(plain.url, pool))
        finally:
            plain.stop()
        print(f"plain vLLM answered {len(answers)} questions", flush=True)
        for method in arguments.methods:
            print(method, flush=True)
            server = serve(method)
            try:
                row = soak(server, pool, traffic(arguments.requests, len(pool), waves), len(waves), Judge(answers))
            finally:
                server.stop()
            row = {"method": method, "models": arguments.models, **row}
            rows.append({**row, "faults": faults(row)})
            print(f"  {'; '.join(rows[-1]['faults']) or 'nothing wrong'}: {rows[-1]}", flush=True)
            if rows[-1]["faults"]:
                print(errors(server.log), flush=True)
    if arguments.json:
        write_report(arguments.json, "soak", argv, {"dtype": "float32", "compiled": False}, rows)
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
