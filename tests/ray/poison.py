"""An actor that dies of one question, for the tests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vllm_specvlm.cluster.answering_actor import AnsweringActor
from vllm_specvlm.engine.chat_engine import ChatAnswer


class PoisonedActor(AnsweringActor):
    """Dies when it is asked with the user name "poison", as an engine that runs out of memory."""

    async def _answer(self, body: Mapping[str, Any]) -> ChatAnswer:
        if body.get("user") == "poison":
            os._exit(1)
        return await super()._answer(body)
