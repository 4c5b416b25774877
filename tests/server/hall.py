"""The servers of a run, one at a time, and what plain vLLM answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.server.client import Answer
from tests.server.process import Server
from tests.tiny.checkpoints import DRAFT, build


class Hall:
    """Holds at most one running server: asking for another kind ends the one before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kind = ""
        self._server: Server | None = None
        self._started = 0

    def server(self, kind: str) -> Server:
        """A healthy server: "plain", "draft" (a draft VLM), "always" (drafts in every step) or "lookup" (no model)."""
        if self._server is None or self._kind != kind or self._server.process.poll() is not None:
            self.clear()
            self._started += 1
            self._kind = kind
            self._server = Server(build("llava"), _speculative(kind), self._folder / f"{self._started}-{kind}.log")
            self._server.wait_until_healthy()
        return self._server

    def clear(self) -> None:
        """End the server, if there is one."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def tail(self) -> str:
        """The end of the running server's log."""
        return self._server.tail() if self._server else ""


def _speculative(kind: str) -> Mapping[str, Any] | None:
    if kind == "plain":
        return None
    if kind == "lookup":
        return {"num_speculative_tokens": 8}
    always = {"planner": False} if kind == "always" else {}
    return {"model": str(build("llava", seed=7, size=DRAFT)), "num_speculative_tokens": 8, **always}


@dataclass(frozen=True)
class Reference:
    """What a plain server answers, by name of the question."""

    good: dict[str, Answer]
    odd: dict[str, Answer]
    bad: dict[str, Answer]
    options: dict[str, Answer]
    metric_types: dict[str, str]
    """The types of the metrics it shows, by name."""
