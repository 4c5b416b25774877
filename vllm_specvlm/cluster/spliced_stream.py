"""A stream of chat or completion chunks that goes on where it broke, from a repetition of the same request."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DONE = "data: [DONE]\n\n"
_TEXTS = ("content", "reasoning", "reasoning_content", "text")


class DifferentAnswerError(Exception):
    """The repetition says something else than what was sent, or says it in a form that cannot be compared."""


class BrokenAnswerError(Exception):
    """The engine has reported that it cannot finish the answer."""


@dataclass(slots=True)
class _Choice:
    """One answer of a request. Texts and lists are what was sent, by field; `seen` how much of it was repeated."""

    texts: dict[str, str] = field(default_factory=lambda: defaultdict(str))
    lists: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    finished: bool = False

    def new_text(self, name: str, piece: str) -> str:
        """The part of the piece that was not sent before."""
        sent, at = self.texts[name], self.seen[name]
        known = min(len(piece), len(sent) - at)
        if piece[:known] != sent[at : at + known]:
            raise DifferentAnswerError(f"its {name} goes on with {piece!r} instead of {sent[at:]!r}")
        self.texts[name] += piece[known:]
        self.seen[name] += len(piece)
        return piece[known:]

    def new_items(self, name: str, items: list[Any]) -> list[Any]:
        """The items that were not sent before: one for each token."""
        known = min(len(items), self.lists[name] - self.seen[name])
        self.lists[name] += len(items) - known
        self.seen[name] += len(items)
        return items[known:]

    def shorter(self) -> bool:
        """Whether less was repeated than was sent."""
        return any(self.seen[name] < len(text) for name, text in self.texts.items())


class SplicedStream:
    """Remembers what a client was sent of a stream, and cuts that from the stream of a repetition.

    The repetition may come in other pieces. Texts are compared; what is counted by tokens (token_ids, logprobs) is
    counted. Tool calls cannot be continued.
    """

    def __init__(self) -> None:
        """Nothing was sent."""
        self._choices: dict[int, _Choice] = defaultdict(_Choice)
        self._head: dict[str, Any] = {}
        self._usage = False
        self._calls = False
        self._done = False

    @property
    def begun(self) -> bool:
        """Whether something was sent."""
        return bool(self._head)

    def repeat(self) -> None:
        """From now on the chunks are those of a repetition, from its beginning.

        Raises:
            DifferentAnswerError: tool calls were sent, which cannot be continued.
        """
        if self._calls:
            raise DifferentAnswerError("it had begun with tool calls")
        for choice in self._choices.values():
            choice.seen.clear()

    def new(self, events: str) -> Iterator[str]:
        """Server-sent events as the engine made them: what of each is to be sent, and counts as sent once it is taken.

        Raises:
            DifferentAnswerError: the repetition differs from what was sent.
            BrokenAnswerError: the engine reports an error of its own, behind what is yielded first.
        """
        for event in events.split("\n\n"):
            if not event.strip():
                continue
            if event.strip() == DONE.strip():
                if not self._done:
                    self._done = True
                    yield DONE
                continue
            chunk = json.loads(event.removeprefix("data:"))
            error = chunk.get("error")
            if error is not None and int(error.get("code") or 500) >= 500:
                raise BrokenAnswerError(error.get("message"))
            if error is not None or self._is_new(chunk):
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _is_new(self, chunk: dict[str, Any]) -> bool:
        """Cut what was sent from the chunk; whether anything is left."""
        first = not self._head
        if first:
            self._head = {name: chunk[name] for name in ("id", "created") if name in chunk}
        chunk.update(self._head)
        had_choices = bool(chunk.get("choices"))
        chunk["choices"] = [choice for choice in chunk.get("choices", ()) if self._choice_is_new(choice)]
        if had_choices or first:
            return bool(chunk["choices"]) or first
        repeated, self._usage = self._usage, True
        return not repeated

    def _choice_is_new(self, entry: dict[str, Any]) -> bool:
        index = entry.get("index", 0)
        opening = index not in self._choices
        choice = self._choices[index]
        delta = entry.get("delta", entry)
        self._calls |= bool(delta.get("tool_calls"))
        left = False
        for name in _TEXTS:
            if delta.get(name):
                delta[name] = choice.new_text(name, delta[name])
                left |= bool(delta[name])
        if entry.get("token_ids"):
            entry["token_ids"] = choice.new_items("token_ids", entry["token_ids"])
            left |= bool(entry["token_ids"])
        if entry.get("logprobs"):
            left |= _cut_logprobs(choice, entry["logprobs"])
        if entry.get("finish_reason") is not None:
            if choice.shorter():
                raise DifferentAnswerError("it ended earlier")
            left |= not choice.finished
            choice.finished = True
        return left or opening or bool(delta.get("tool_calls"))


def _cut_logprobs(choice: _Choice, logprobs: dict[str, Any]) -> bool:
    """A chat's logprobs are one list, a completion's several of the same length; whether anything is left."""
    left = False
    for name, items in logprobs.items():
        if isinstance(items, list):
            logprobs[name] = choice.new_items(f"logprobs.{name}", items)
            left |= bool(logprobs[name])
    return left
