"""An actor of the pool that answers a dataset."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pyarrow as pa

from vllm_specvlm.engine.chat_engine import ChatAnswer, ChatEngine

COLUMNS = pa.schema([("custom_id", pa.string()), ("response", pa.string()), ("error", pa.string())])
"""Of the answers: "response" is the body of the response as JSON, "error" that of an error; one of them is null."""

_PAUSE = 1.0  # seconds before the second attempt, twice that before the third


class AnsweringActor:
    """A vLLM engine, for `Dataset.map_batches`: several batches at once share the engine's continuous batching."""

    def __init__(self, options: Mapping[str, Any], attempts: int) -> None:
        """Start the engine.

        Args:
            options: of `ChatEngine`.
            attempts: how often to try a question in all before its error becomes its answer.
        """
        # With vLLM's cache of processed pictures, a request that is refused after its picture was processed leaves
        # every later one with that picture failing: the engine is taken to have it, and never got it.
        self._engine = ChatEngine({"mm_processor_cache_gb": 0, **options})
        self._attempts = attempts
        self._opening: asyncio.Task[None] | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Answer the rows of a batch: columns "custom_id" and "body", a chat request as JSON."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._engine.open())
        await self._opening
        rows = batch.select(["custom_id", "body"]).to_pylist()
        answers = await asyncio.gather(*(self._answer(json.loads(row["body"])) for row in rows))
        yield pa.table(
            [
                [row["custom_id"] for row in rows],
                [answer.body for answer in answers],
                [answer.error for answer in answers],
            ],
            schema=COLUMNS,
        )

    async def _answer(self, body: Mapping[str, Any]) -> ChatAnswer:
        answer = await self._engine.answer(body)
        for attempt in range(1, self._attempts):
            if answer.error is None:
                break
            await asyncio.sleep(_PAUSE * attempt)
            answer = await self._engine.answer(body)
        if self._engine.dead:
            # Ray gives this actor's batches to a new one only if the process ends.
            os._exit(1)
        return answer
