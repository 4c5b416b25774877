"""ASGI middleware of the server that records chats. It sees requests and responses pass and never changes either."""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.traffic.chat import exchange
from vllm_specvlm.traffic.exchange import Exchange
from vllm_specvlm.traffic.log_folder import LogFolder
from vllm_specvlm.traffic.recording import Recording

logger = logger_for(__name__)

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PATH = "/v1/chat/completions"
_MOST_HELD = 256 << 20
"""Bytes of requests and responses that are kept at once; what comes above is not recorded."""
_MOST_OF_ONE = 48 << 20
"""Bytes of one request and its response: less than `LogFolder` takes for a file."""
_FAILED = "Recording failed and has stopped until the server is restarted; requests go on."


class TrafficRecorder:
    """Keeps what passes, and hands it to a thread that writes it when the response is out.

    Whatever fails (a full disk, a hook that raises) ends the recording with one error in the log, and nothing else.
    """

    def __init__(self, app: App) -> None:
        """`app` is what answers; what to record was announced (see `Recording`)."""
        self._app = app
        self._recording = Recording.announced()
        self._held = 0
        self._lock = threading.Lock()
        self._done: queue.SimpleQueue[tuple[list[bytes], list[bytes]]] = queue.SimpleQueue()
        self._on = True
        threading.Thread(target=self._write_all, name="specvlm-recorder", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as `app` does."""
        if not (self._on and scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith(_PATH)):
            return await self._app(scope, receive, send)
        passing = _Passing(self)

        async def heard() -> Event:
            event = await receive()
            passing.hear(event)
            return event

        async def said(event: Event) -> None:
            await send(event)
            passing.say(event)

        try:
            await self._app(scope, heard, said)
        finally:
            passing.end()

    def hold(self, size: int) -> bool:
        """Whether so many more bytes may be kept; they then count until `release`."""
        with self._lock:
            fits = self._on and self._held + size <= _MOST_HELD
            self._held += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """So many bytes are kept no longer."""
        with self._lock:
            self._held -= size

    def record(self, request: list[bytes], response: list[bytes]) -> None:
        """A response is out; the pieces of both were held."""
        self._done.put((request, response))

    def fail(self) -> None:
        """Stop recording; the error that is being handled goes to the log, unless one did."""
        with self._lock:
            first, self._on = self._on, False
        if first:
            logger.exception(_FAILED)

    def _write_all(self) -> None:
        try:
            self._write_until_full()
        except BaseException:  # a hook may even ask to exit
            self.fail()
        self._on = False
        while True:  # what was on its way
            for pieces in self._done.get():
                self.release(sum(map(len, pieces)))

    def _write_until_full(self) -> None:
        recording = self._recording
        hook, log = recording.hook(), LogFolder(Path(recording.folder))
        log.prepare()
        most = recording.mib << 20
        size = counted = log.size()
        while size < most:
            asked, answered = self._done.get()
            held = sum(map(len, (*asked, *answered)))
            try:
                found = exchange(b"".join(asked), b"".join(answered), recording.models)
                if found is not None and hook is not None:
                    kept = hook(found.as_dict())
                    found = None if kept is None else replace(Exchange.from_dict(kept), cut=found.cut)
                if found is not None:
                    size += log.add(found, recording.target)
            finally:
                self.release(held)
            if size - counted > most >> 6:  # other processes may write, too
                size = counted = log.size()
        logger.warning("'%s' holds %s MiB; recording has stopped there.", recording.folder, recording.mib)


class _Passing:
    """One request and its response, as far as they have passed."""

    def __init__(self, recorder: TrafficRecorder) -> None:
        self._recorder = recorder
        self._request: list[bytes] = []
        self._response: list[bytes] = []
        self._held = 0
        self._wanted = True
        self._complete = False

    def hear(self, event: Event) -> None:
        if event["type"] == "http.request":
            self._keep(self._request, event.get("body", b""))

    def say(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            if event["status"] != 200:
                self._drop()
        elif event["type"] == "http.response.body":
            self._keep(self._response, event.get("body", b""))
            self._complete = not event.get("more_body", False)

    def end(self) -> None:
        """Nothing is raised: the response, or the application's own error, is on its way."""
        try:
            if self._wanted and self._complete:
                self._recorder.record(self._request, self._response)
            else:
                self._drop()
        except Exception:  # no memory
            self._drop()
            self._recorder.fail()

    def _keep(self, where: list[bytes], piece: bytes) -> None:
        if not (self._wanted and piece):
            return
        if self._held + len(piece) <= _MOST_OF_ONE and self._recorder.hold(len(piece)):
            where.append(bytes(piece))
            self._held += len(piece)
        else:
            self._drop()

    def _drop(self) -> None:
        """It will not be recorded; what was kept of it makes room at once."""
        self._wanted = False
        self._request.clear()
        self._response.clear()
        self._recorder.release(self._held)
        self._held = 0
