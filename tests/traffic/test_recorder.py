"""The middleware around a small application: what passes is recorded, and nothing that fails is felt."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.traffic.made import TARGET, answered, asked, png, streamed
from vllm_specvlm.traffic import recorder as module
from vllm_specvlm.traffic.log_folder import LogFolder
from vllm_specvlm.traffic.recorder import TrafficRecorder
from vllm_specvlm.traffic.recording import VARIABLE, Recording

URL = "http://server/v1/chat/completions"
dropped: list[dict[str, Any]] = []


def mask(given: dict[str, Any]) -> dict[str, Any] | None:
    """A hook: drops what is private, blackens pictures, changes a name."""
    if "private" in str(given):
        dropped.append(given)
        return None
    for message in given["messages"]:
        for part in message["content"]:
            if "picture" in part:
                part["picture"] = png("black")
            else:
                part["text"] = part["text"].replace("Ada", "NAME")
    return given


def broken(given: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("a hook's own fault")


def leaves(given: dict[str, Any]) -> dict[str, Any]:
    raise SystemExit(3)


def nonsense(given: dict[str, Any]) -> Any:
    return {"messages": 7}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers whole or streamed, fails or breaks off, as the last message says."""
    body = b""
    while True:
        event = await receive()
        body += event["body"]
        if not event.get("more_body"):
            break
    text = str(json.loads(body)["messages"][-1]["content"])
    await send({"type": "http.response.start", "status": 400 if "bad" in text else 200, "headers": []})
    if "raise" in text:
        raise RuntimeError("the application's own fault")
    response = streamed("A ", "cat.") if json.loads(body).get("stream") else answered()
    for at in range(0, len(response), 50):
        await send({"type": "http.response.body", "body": response[at : at + 50], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrafficRecorder]]:
    def started(**options: Any) -> TrafficRecorder:
        given = {"folder": str(tmp_path / "log"), "target": TARGET, "models": ("tiny",), **options}
        monkeypatch.setenv(VARIABLE, "")  # is put back afterwards
        Recording(**given).announce()
        LogFolder(Path(given["folder"])).prepare()
        return TrafficRecorder(application)

    yield started
    dropped.clear()


def post(recorder: TrafficRecorder, *bodies: dict[str, Any], url: str = URL) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(recorder, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return list(await asyncio.gather(*(client.post(url, json=body) for body in bodies)))

    return asyncio.run(all_of_them())


def recorded(tmp_path: Path, count: int) -> list[list[dict[str, Any]]]:
    """So many exchanges' messages, once they are written."""
    log, end = LogFolder(tmp_path / "log"), time.monotonic() + 20
    while len(log.names()) < count and time.monotonic() < end:
        time.sleep(0.02)
    assert len(log.names()) == count
    return [log.read(name)[1] for name in log.names()]


def wait_until(off: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not off() and time.monotonic() < end:
        time.sleep(0.02)
    assert off()


def test_whole_answers_and_streams_are_recorded_with_the_target(
    start: Callable[..., TrafficRecorder], tmp_path: Path
) -> None:
    recorder = start()
    responses = post(recorder, asked("one", picture=png()), asked("two", stream=True))
    assert responses[0].content == answered() and responses[1].content == streamed("A ", "cat.")
    found = recorded(tmp_path, 2)
    assert {messages[0]["content"][-1]["text"] for messages in found} == {"one", "two"}
    assert all(messages[1]["content"] == [{"text": "A cat."}] for messages in found)
    log = LogFolder(tmp_path / "log")
    assert log.read(log.names()[0])[0] == TARGET
    wait_until(lambda: recorder._held == 0)


def test_only_good_chats_are_recorded(start: Callable[..., TrafficRecorder], tmp_path: Path) -> None:
    recorder = start()
    statuses = [r.status_code for r in post(recorder, asked("bad"), asked("raise"), asked("tools", tools=[1]))]
    assert statuses[0] == 400 and statuses[2] == 200
    post(recorder, asked("elsewhere"), url="http://server/v1/completions")
    post(recorder, asked("good"))
    (messages,) = recorded(tmp_path, 1)
    assert messages[0]["content"] == [{"text": "good"}]
    wait_until(lambda: recorder._held == 0)


def test_a_hook_changes_and_drops(start: Callable[..., TrafficRecorder], tmp_path: Path) -> None:
    recorder = start(redact=f"{__name__}:mask")
    post(recorder, asked("private"))
    wait_until(lambda: bool(dropped))
    post(recorder, asked("I am Ada.", picture=png("red")))
    (messages,) = recorded(tmp_path, 1)
    assert messages[0]["content"][1] == {"text": "I am NAME."}
    (picture,) = (tmp_path / "log" / "pictures").iterdir()
    assert picture.read_bytes() == png("black")
    assert b"Ada" not in b"".join(path.read_bytes() for path in (tmp_path / "log").rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", ["broken", "nonsense", "leaves", "disk", "folder", "memory"])
def test_whatever_fails_ends_the_recording_with_one_error_and_nothing_else(
    fault: str,
    start: Callable[..., TrafficRecorder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[logging.LogRecord] = []
    monkeypatch.setattr(module.logger, "exception", lambda *given, **more: errors.append(given))
    options: dict[str, Any] = {}
    if fault in ("broken", "nonsense", "leaves"):
        options["redact"] = f"{__name__}:{fault}"

    def full(*given: Any) -> int:
        raise OSError(28, "No space left on device")

    if fault == "disk":
        monkeypatch.setattr(LogFolder, "add", full)
    if fault == "folder":
        monkeypatch.setattr(LogFolder, "size", full)
    recorder = start(**options)
    if fault == "memory":

        def none_left(*given: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(recorder, "record", none_left)
    assert [r.status_code for r in post(recorder, *[asked(str(n)) for n in range(5)])] == [200] * 5
    wait_until(lambda: not recorder._on)
    assert [r.content for r in post(recorder, *[asked(str(n)) for n in range(5)])] == [answered()] * 5
    time.sleep(0.1)
    assert len(errors) == 1
    assert LogFolder(tmp_path / "log").names() == []
    assert recorder._held == 0, "what was on its way is still held"


def test_it_stops_when_the_folder_is_full(start: Callable[..., TrafficRecorder], tmp_path: Path) -> None:
    LogFolder(tmp_path / "log").prepare()
    other = tmp_path / "log" / "pictures" / ("0" * 64)
    other.write_bytes(bytes((1 << 20) - 40_000))
    recorder = start(mib=1)
    for number in range(8):
        assert [r.status_code for r in post(recorder, asked(f"{number} {'x' * 9000}"))] == [200]
    wait_until(lambda: not recorder._on)
    found = len(LogFolder(tmp_path / "log").names())
    assert 4 <= found <= 6, "it stopped too early or too late"
    other.unlink()
    assert [r.status_code for r in post(recorder, asked("later"))] == [200]
    time.sleep(0.1)
    assert len(LogFolder(tmp_path / "log").names()) == found


def test_what_is_held_has_a_bound(
    start: Callable[..., TrafficRecorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_HELD", 2000)
    refused_is_released_at_once(start(), tmp_path)


def test_one_exchange_has_a_bound(
    start: Callable[..., TrafficRecorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_OF_ONE", 2000)
    refused_is_released_at_once(start(), tmp_path)


def refused_is_released_at_once(recorder: TrafficRecorder, tmp_path: Path) -> None:
    """A request above a bound of 2000 bytes that comes in pieces below it; then one that fits."""
    whole = json.dumps(asked("x" * 4000)).encode()
    pieces, seen = [whole[at : at + 500] for at in range(0, len(whole), 500)], []

    async def receive() -> dict[str, Any]:
        seen.append(recorder._held)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(event: Any) -> None:
        seen.append(recorder._held)

    asyncio.run(recorder({"type": "http", "method": "POST", "path": "/v1/chat/completions"}, receive, send))
    assert max(seen) > 1000 and seen[-1] == 0, "it held what it would not record until it ended"
    post(recorder, asked("small"))
    (messages,) = recorded(tmp_path, 1)
    assert messages[0]["content"] == [{"text": "small"}]
    wait_until(lambda: recorder._held == 0)


def test_a_refused_request_is_released_when_its_status_is_out(start: Callable[..., TrafficRecorder]) -> None:
    recorder, held = start(), {}
    body = json.dumps(asked("bad")).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        held.setdefault(event["type"], recorder._held)

    asyncio.run(recorder({"type": "http", "method": "POST", "path": "/v1/chat/completions"}, receive, send))
    assert held == {"http.response.start": len(body), "http.response.body": 0}
