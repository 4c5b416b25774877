"""The server's front: Ray's own, which asks another replica when one is lost."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.llm.openai_api_models import ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_specvlm.cluster.spliced_stream import DONE, BrokenAnswerError, DifferentAnswerError, SplicedStream
from vllm_specvlm.engine.log import logger_for

logger = logger_for(__name__)

_ATTEMPTS = 5
_PAUSE = 0.5  # seconds before the second attempt, twice that before the third, and so on
_OF_REPLICAS = (500, 502, 503, 504)  # what a request has no part in; 501 is for what vLLM does not implement
_LOST = (RayActorError, ReplicaUnavailableError, EngineDeadError, BrokenAnswerError)


class Ingress(OpenAiIngress):
    """The OpenAI API. A client gets one answer, from the beginning to the end, whichever replicas die meanwhile.

    An answer that was not begun is asked for again. A stream that was begun goes on from the same answer of another
    replica: a sampled one is given a seed for that, if it has none.
    """

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Any = None) -> AsyncGenerator[Any, None]:
        stream = SplicedStream()
        if getattr(body, "stream", False) and getattr(body, "seed", 0) is None:
            body.seed = secrets.randbits(31)
        try:
            for attempt in range(_ATTEMPTS):
                responses = super()._get_response(body=body, call_method=call_method, raw_request=raw_request)
                try:
                    async with aclosing(responses):
                        async for response in responses:
                            for piece in _pieces(response, stream):
                                yield piece
                    return
                except _LOST as error:
                    logger.warning(
                        "A replica was lost with a request (%s), attempt %d.", type(error).__name__, attempt + 1
                    )
                    if attempt + 1 == _ATTEMPTS:
                        raise
                    stream.repeat()
                await asyncio.sleep(_PAUSE * 2**attempt)
        except (*_LOST, DifferentAnswerError) as error:
            if not stream.begun:
                raise
            reason = str(error).splitlines()[0]
            yield _failure(f"A replica was lost and its answer cannot be continued ({reason}); ask again.")


def _pieces(response: Any, stream: SplicedStream) -> Iterator[Any]:
    """What of a replica's response is to be sent: events of a stream, alone or several, or a whole answer.

    Raises BrokenAnswerError where the response says so, behind what comes before that: it is sent already.
    """
    for item in response if isinstance(response, list) else [response]:
        if isinstance(item, ErrorResponse) and int(item.error.code or 500) in _OF_REPLICAS:
            raise BrokenAnswerError(item.error.message)
        if isinstance(item, str):
            yield from stream.new(item)
        else:
            yield item


def _failure(message: str) -> str:
    error = {"message": message, "type": "ReplicaLost", "param": None, "code": 503}
    return f"data: {json.dumps({'error': error})}\n\n{DONE}"
