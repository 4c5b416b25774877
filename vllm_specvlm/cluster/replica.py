"""A replica of the server: Ray's own, which leaves when its engine has died."""

from __future__ import annotations

import asyncio
import os

from ray.serve.llm.deployment import LLMServer
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_specvlm.engine.log import logger_for

logger = logger_for(__name__)
_PERIOD = 1.0  # seconds


class Replica(LLMServer):
    """Serves one engine.

    Ray asks after the engine's health some seconds apart, and a replica whose engine is dead answers every request at
    once, with an error, so that it looks idle and is given more. Here the process ends, and is replaced, at once.
    """

    async def start(self) -> None:
        """Start the engine, and watch it from then on."""
        await super().start()
        self._watch = asyncio.create_task(self._leave_with_engine())

    async def _leave_with_engine(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.engine.check_health()
            except EngineDeadError:
                os._exit(1)
            except Exception:  # Ray's own checks decide what that means; this one looks again
                logger.exception("The engine's health could not be asked.")
