"""Pictures between vLLM's front end and its engine: which of them arrive without their pixels, and where that is fatal.

With vLLM's own caches, as the front end and the engine of a configuration build them; the messages between the two are
handed over by the test, so that it decides which of them arrives when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from vllm import EngineArgs
from vllm.multimodal.cache import (
    MultiModalCacheMissError,
    engine_receiver_cache_from_config,
    processor_cache_from_config,
)
from vllm.multimodal.inputs import MultiModalKwargsItem

from tests.tiny.checkpoints import build
from vllm_specvlm.engine import plugin


def configure(speculative: dict[str, Any] | None, **options: Any) -> Any:
    plugin.register()
    arguments: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, **options}
    return EngineArgs(str(build("llava")), speculative_config=speculative, **arguments).create_engine_config()


class Ends:
    """A front end and an engine."""

    def __init__(self, config: Any) -> None:
        self._sender = processor_cache_from_config(config)
        self._receiver = engine_receiver_cache_from_config(config)

    def process(self, picture: str) -> MultiModalKwargsItem | None:
        """In the front end: what a request about the picture is going to carry."""
        assert self._sender is not None
        known = self._sender.is_cached_item(picture)
        given = None if known else (MultiModalKwargsItem.dummy(), [])
        return self._sender.get_and_update_item(given, picture)[0]

    def arrive(self, carried: MultiModalKwargsItem | None, picture: str) -> None:
        """In the engine: its pixels are there, or this raises."""
        if self._receiver is not None:
            carried = self._receiver.get_and_update_item(carried, picture)
        assert carried is not None


def in_order(ends: Ends) -> None:
    ends.arrive(ends.process("a"), "a")
    ends.arrive(ends.process("a"), "a")


def after_a_refused_one(ends: Ends) -> None:
    ends.process("a")
    ends.arrive(ends.process("a"), "a")


def overtaken(ends: Ends) -> None:
    first = ends.process("a")
    second = ends.process("a")
    ends.arrive(second, "a")
    ends.arrive(first, "a")


LOSING = (after_a_refused_one, overtaken)


@pytest.mark.parametrize("scene", [in_order, *LOSING])
def test_ours_always_arrive(scene: Callable[[Ends], None]) -> None:
    scene(Ends(configure({"method": "specvlm"})))


@pytest.mark.parametrize("scene", LOSING)
@pytest.mark.parametrize("method", [None, {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}])
def test_vllms_own_do_not(scene: Callable[[Ends], None], method: dict[str, Any] | None) -> None:
    """The control, and that we leave other engines as they are."""
    in_order(Ends(configure(method)))
    with pytest.raises(MultiModalCacheMissError):
        scene(Ends(configure(method)))


def test_what_the_user_chose_stays() -> None:
    config = configure({"method": "specvlm"}, mm_processor_cache_gb=0)
    assert processor_cache_from_config(config) is None and engine_receiver_cache_from_config(config) is None
