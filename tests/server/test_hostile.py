"""Bodies and pictures that somebody made to do harm: refused or ignored, while others' answers go on unchanged."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.client import Answer, asked
from tests.server.hall import Reference
from tests.server.process import Server
from tests.server.questions import body, data_url, good
from tests.server.test_crowd import wait_until_idle

pytestmark = pytest.mark.slow  # two servers of three processes

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 127, 128, 10**9, 10**30, 0.5, -1e308, 1e308, "", "on", "off", "9" * 5000, "\x00"),
    *("٣", "a\nb", "x" * 100_000, [], {}, [[]], {"a": {"b": []}}, [0] * 1000, ["off"], {"specvlm": "off"}, "NaN"),
)
"""What may stand anywhere."""
WISHES = ("specvlm", "specvlm_nodes", "specvlm_depth", "specvlm_no_such", "other")
FIELDS = (
    *("messages", "model", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop", "logprobs"),
    *("top_logprobs", "prompt_logprobs", "stop_token_ids", "bad_words", "allowed_token_ids", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "structured_outputs", "response_format", "stream", "priority"),
    *("mm_processor_kwargs", "chat_template", "chat_template_kwargs", "add_generation_prompt", "tools", "tool_choice"),
    *("cache_salt", "logit_bias", "min_p", "truncate_prompt_tokens", "return_token_ids", "kv_transfer_params"),
)


def hostile(seed: int) -> bytes:
    """A body with something wrong in it, mostly."""
    chance = random.Random(seed)
    made: dict[str, Any] = dict(good()[chance.choice(list(good()))])
    made["max_tokens"] = 12
    match chance.randrange(4):
        case 0:
            made["vllm_xargs"] = {chance.choice(WISHES): chance.choice(VALUES) for _ in range(chance.randrange(1, 4))}
        case 1:
            made["vllm_xargs"] = chance.choice(VALUES)
        case 2:
            for _ in range(chance.randrange(1, 3)):
                made[chance.choice(FIELDS)] = chance.choice(VALUES)
        case _:
            kind = chance.choice(("image_url", "text", "video_url", "", 5))
            part = {"type": kind, "image_url": chance.choice(VALUES)}
            if chance.random() < 0.5:
                part["image_url"] = {"url": chance.choice(VALUES), "detail": chance.choice(VALUES)}
            made["messages"] = [{"role": chance.choice(("user", "system", "", 3)), "content": [part]}]
    text = json.dumps(made)
    if chance.random() < 0.1:
        text = text[: chance.randrange(len(text))]
    if chance.random() < 0.1:
        text = text.replace("12", chance.choice(("NaN", "Infinity", "1e999", "-0", "012")), 1)
    return text.encode()


async def send(server: Server, content: bytes) -> int:
    """The status of the answer; of a stream, when it has ended."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        response = await client.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
    return response.status_code


def beside_others(server: Server, reference: Reference, contents: list[bytes]) -> list[int]:
    """The statuses; before, between and after them good requests are sent, which must not notice."""
    names = list(good())

    async def scene() -> tuple[list[int], list[Answer]]:
        tasks = []
        for number, content in enumerate(contents):
            tasks.append(asyncio.create_task(send(server, content)))
            if number % 10 == 0:
                await asyncio.sleep(0.05)
        others, statuses = await asyncio.gather(asked(server, [good()[n] for n in names * 4]), asyncio.gather(*tasks))
        return statuses, others

    statuses, others = asyncio.run(scene())
    assert others == [reference.good[name] for name in names * 4]
    wait_until_idle(server)
    assert server.healthy()
    assert asyncio.run(asked(server, [good()[name] for name in names])) == [reference.good[name] for name in names]
    return statuses


def test_bodies(always_server: Server, reference: Reference) -> None:
    """Two hundred, the same in every run."""
    statuses = beside_others(always_server, reference, [hostile(seed) for seed in range(200)])
    assert set(statuses) <= {200, 400, 404, 422, 500, 501}, sorted(set(statuses))
    assert 20 < statuses.count(200) < 180
    assert always_server.complaints() == []


HUGE: dict[str, Any] = {
    "a number": 10**400,
    "digits": "9" * 5000,
    "a zero byte": "off\x00",
    "a list": ["off"] * 1000,
    "infinity": float("inf"),
    "a megabyte": "x" * (1 << 20),
}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
def test_wishes_that_are_no_wishes(value: Any, always_server: Server, reference: Reference) -> None:
    """Answered as if nothing had been said, or refused; the neighbour is served."""
    contents = [json.dumps({**good()["picture"], "vllm_xargs": {name: value}}).encode() for name in WISHES]
    assert set(beside_others(always_server, reference, contents)) <= {200, 400, 422}


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG of one colour: some kilobytes that become width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _gif_bomb() -> bytes:
    """A GIF that says it is as large as a GIF can be."""
    file = io.BytesIO()
    Image.new("P", (1, 1)).save(file, "GIF")
    made = bytearray(file.getvalue())
    made[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(made)


def _peaks(server: Server) -> int:
    """Bytes that the server's processes have had at once in memory, at most, summed."""
    total = 0
    for process in server.descendants():
        status = Path(f"/proc/{process}/status").read_text()
        total += int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10
    return total


def test_pictures_that_are_larger_than_they_look(always_server: Server, reference: Reference) -> None:
    """Refused before they are unpacked: half a gigabyte each, if one were."""
    bombs = {"png": _png_bomb(40_000, 40_000), "apng": _png_bomb(65_500, 65_500), "gif": _gif_bomb()}
    assert all(len(bomb) < 1 << 20 for bomb in bombs.values())
    beside_others(always_server, reference, [])
    before = _peaks(always_server)
    contents = [
        json.dumps(body(data_url(bomb, form.removeprefix("a")), " what is this?")).encode()
        for form, bomb in bombs.items()
    ] * 3
    statuses = beside_others(always_server, reference, contents)
    assert all(400 <= status < 600 for status in statuses), statuses
    assert _peaks(always_server) - before < 256 << 20
    assert always_server.complaints() == []
