"""Requests, responses and exchanges for the tests of recording."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.traffic.exchange import Exchange, Message

TARGET = TargetId("tiny", "llava", 64, 2, 500, "ab" * 32)
OTHER = TargetId("other", "llava", 64, 2, 500, "cd" * 32)


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def asked(text: str = "What is this?", picture: bytes | None = None, **more: Any) -> dict[str, Any]:
    """A request's body."""
    content: Any = text
    if picture is not None:
        content = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": text}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}


def answered(text: str = "A cat.", **message: Any) -> bytes:
    """A response's body."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]}).encode()


def streamed(*pieces: str, reason: str = "stop", done: bool = True) -> bytes:
    """A response as a stream of events, as vLLM sends it."""
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces]
    deltas[-1] = (deltas[-1][0], reason)
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in deltas]
    lines = [f"data: {json.dumps(event)}\n\n" for event in [*events, {"choices": [], "usage": {"total_tokens": 9}}]]
    return "".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


def exchange(text: str = "What is this?", answer: str = "A cat.", picture: bytes | None = None) -> Exchange:
    parts: tuple[str | bytes, ...] = (text,) if picture is None else (picture, text)
    return Exchange((Message("user", parts), Message("assistant", (answer,))))
