"""Answers of a batch's engine, whatever vLLM's chat layer makes of a request."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from vllm_specvlm.engine.chat_engine import ChatAnswer, ChatEngine

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello."}]}


def answered(found: Any) -> ChatAnswer:
    """The answer of an engine whose chat layer returns or raises this."""

    async def create(request: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    engine = ChatEngine.__new__(ChatEngine)
    engine._chat = SimpleNamespace(create_chat_completion=create)
    return asyncio.run(engine.answer(BODY))


def refusal(message: str) -> ErrorResponse:
    return ErrorResponse(error=ErrorInfo(message=message, type="BadRequestError", code=400))


def test_a_refusal() -> None:
    answer = answered(refusal("too long"))
    assert answer.body is None and json.loads(answer.error or "")["error"]["message"] == "too long"


@pytest.mark.parametrize(
    "found", [refusal("no \ud800 here"), RuntimeError("out of memory \ud800")], ids=["said", "raised"]
)
def test_half_a_character_costs_nobody_else_an_answer(found: Any) -> None:
    """It cannot be written as JSON in UTF-8, which is no reason to raise: a whole batch would be lost with it."""
    answer = answered(found)
    assert answer.body is None and answer.error is not None
    assert json.loads(answer.error)["error"]["code"] == 500 and answer.error.isascii()
