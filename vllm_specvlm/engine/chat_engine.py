"""An engine behind vLLM's own OpenAI chat layer, in a process that is no server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What became of a chat request: the body of the response as JSON, or the error as JSON; the other is None."""

    body: str | None
    error: str | None


def chat_error(message: str, code: int) -> str:
    """An error as OpenAI's API gives them, as JSON."""
    return json.dumps({"error": {"message": message, "type": "specvlm", "param": None, "code": code}})


class ChatEngine:
    """Answers the bodies of OpenAI chat requests as `vllm serve` with the same options would."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Start the engine.

        Args:
            options: keyword arguments of vLLM's `AsyncEngineArgs`: model, speculative_config and so on.

        Raises:
            ValueError: an option is refused.
            RuntimeError: the engine did not start.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._arguments = AsyncEngineArgs(**options)
        self._engine = AsyncLLM.from_engine_args(self._arguments)
        self._chat: Any = None

    async def open(self) -> None:
        """Prepare the chat layer; once, before the first answer, in the loop that will answer."""
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.cli_args import FrontendArgs
        from vllm.entrypoints.openai.api_server import init_app_state

        state = State()
        arguments = argparse.Namespace(**(vars(FrontendArgs()) | vars(self._arguments)))
        await init_app_state(self._engine, state, arguments, await self._engine.get_supported_tasks())
        self._chat = state.openai_serving_chat

    async def answer(self, body: Mapping[str, Any]) -> ChatAnswer:
        """Answer one request; never raises for what is wrong with it. A body that asks for a stream is wrong."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        if body.get("stream"):
            return ChatAnswer(None, chat_error("'stream' is true in a batch; leave it out.", 400))
        try:
            response = await self._chat.create_chat_completion(ChatCompletionRequest(**body))
            text: str = response.model_dump_json()  # which half a character in a quotation keeps it from
        except Exception as error:
            return ChatAnswer(None, chat_error(f"{type(error).__name__}: {error}", 500))
        return ChatAnswer(None, text) if hasattr(response, "error") else ChatAnswer(text, None)

    @property
    def dead(self) -> bool:
        """Whether the engine's process has ended, so that no request can be answered any more."""
        dead: bool = self._engine.errored
        return dead
