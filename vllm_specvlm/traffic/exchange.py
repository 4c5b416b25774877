"""One request and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said."""

    role: str
    """One of ROLES."""
    parts: tuple[str | bytes, ...]
    """Text, and pictures as files in a format that Pillow reads."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation whose last message is the server's answer.

    Raises:
        ValueError: it is not a system message or none, then turns of user and assistant, all of them with content.
    """

    messages: tuple[Message, ...]
    cut: bool = False
    """The answer broke off where it got too long: what the target would have said next is not known."""

    def __post_init__(self) -> None:
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        if not turns or len(turns) % 2:
            raise ValueError(f"{len(turns)} messages of user and assistant are no whole turns")
        for at, message in enumerate(turns):
            if message.role != ("user", "assistant")[at % 2]:
                raise ValueError(f"a message of '{message.role}' stands where user and assistant take turns")
        for message in self.messages:
            if not message.parts:
                raise ValueError(f"a message of '{message.role}' is empty")
            if message.role != "user" and not (len(message.parts) == 1 and isinstance(message.parts[0], str)):
                raise ValueError(f"a message of '{message.role}' is not one text")

    def as_dict(self) -> dict[str, Any]:
        """As a hook gets it: {"messages": [{"role": str, "content": [{"text": str}, {"picture": bytes}]}]}."""
        return {
            "messages": [
                {"role": message.role, "content": [_as_dict(part) for part in message.parts]}
                for message in self.messages
            ]
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Exchange:
        """The reverse of `as_dict`. Raises ValueError for anything else."""
        try:
            return cls(tuple(_message(each) for each in given["messages"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no conversation ({type(error).__name__}: {error})") from error


def _as_dict(part: str | bytes) -> dict[str, str | bytes]:
    return {"text" if isinstance(part, str) else "picture": part}


def _message(given: Mapping[str, Any]) -> Message:
    return Message(_of(str, given["role"]), tuple(_part(part) for part in given["content"]))


def _part(given: Mapping[str, Any]) -> str | bytes:
    ((kind, content),) = given.items()
    if kind not in ("text", "picture"):
        raise ValueError(f"a part of a message is called '{kind}', not 'text' or 'picture'")
    found: str | bytes = _of(str if kind == "text" else bytes, content)
    return found


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value
