"""Reading an exchange out of a chat completion's HTTP request and response."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping
from typing import Any

from vllm_specvlm.traffic.exchange import Exchange, Message

_OTHERWISE = (
    *("tools", "functions", "response_format", "structured_outputs", "chat_template", "chat_template_kwargs"),
    *("documents", "continue_final_message", "media_io_kwargs", "mm_processor_kwargs", "prompt_embeds"),
    *("truncate_prompt_tokens", "add_special_tokens", "reasoning_effort", "thinking_token_budget"),
    *("logit_bias", "bad_words", "allowed_token_ids"),
)
"""What makes a prompt, or an answer's law, another one than training would make of the same messages, unless it says
nothing."""
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
_UNLESS_FALSE = ("add_generation_prompt", "skip_special_tokens", "include_reasoning")
"""The same of fields that are true where a request does not name them."""


def exchange(request: bytes, response: bytes, models: Collection[str]) -> Exchange | None:
    """The exchange, or None for one that training cannot repeat.

    That is: answers that are not whole (a client that left) or are more than one text; messages beside system, user and
    assistant; pictures that are named by a URL and not contained; fields such as `tools` and `response_format`;
    another model than one called as in `models` (a LoRA adapter).

    Args:
        request: body of a POST to /v1/chat/completions.
        response: all of what was sent back with status 200, an object or a stream of events.
        models: names of the target.
    """
    try:
        asked = json.loads(request)
        if asked.get("model") not in (None, "", *models) or asked.get("echo"):
            return None
        if any(_says(key, asked.get(key)) for key in _OTHERWISE) or any(
            asked.get(key) is False for key in _UNLESS_FALSE
        ):
            return None
        answer, reason = _streamed(response) if asked.get("stream") else _whole(json.loads(response))
        if not answer or reason not in ("stop", "length"):
            return None
        messages = tuple(_message(each) for each in asked["messages"])
        return Exchange((*messages, Message("assistant", (answer,))), cut=reason == "length")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _says(field: str, value: Any) -> bool:
    """Whether a field's value asks for something; a budget of 0 does."""
    if field == "response_format" and value == {"type": "text"}:
        return False
    return value not in _NOTHING or (value == 0 and value is not False)


def _whole(given: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The text, and why it ended; None for an answer that is no text."""
    (choice,) = given["choices"]
    message = choice["message"]
    if message.get("tool_calls") or message.get("reasoning"):
        return None, None
    return message["content"], choice["finish_reason"]


def _streamed(given: bytes) -> tuple[str | None, str | None]:
    """The same of a stream; of one that broke off there is no text."""
    text: list[str] = []
    reason: str | None = None
    for line in given.split(b"\n"):
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        for choice in json.loads(line[len(b"data: ") :])["choices"]:
            delta = choice["delta"]
            if choice["index"] or delta.get("tool_calls") or delta.get("reasoning"):
                return None, None
            text.append(delta.get("content") or "")
            reason = choice.get("finish_reason") or reason
    return "".join(text) if given.rstrip().endswith(b"data: [DONE]") else None, reason


def _message(given: Mapping[str, Any]) -> Message:
    content = given["content"]
    return Message(given["role"], (content,) if isinstance(content, str) else tuple(_part(part) for part in content))


def _part(given: Mapping[str, Any]) -> str | bytes:
    if given["type"] == "text":
        text: str = given["text"]
        return text
    if given["type"] != "image_url":
        raise ValueError(f"parts of type {given['type']} are not recorded")
    named = given["image_url"]
    url: str = named if isinstance(named, str) else named["url"]
    kind, comma, data = url.partition(",")
    if not (comma and kind.startswith("data:image/") and kind.endswith(";base64")):
        raise ValueError("the picture is not contained")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError("the picture is not base64") from error
