"""What vLLM refuses under any speculation, and requests of a `specvlm` engine may ask for all the same.

`min_p` and `logit_bias` are exact at every node of a tree (`engine.row_features`, `engine.sampling`). A request that a
custom logits processor deals with is decoded plainly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import (
    BUILTIN_LOGITS_PROCESSORS,
    AdapterLogitsProcessor,
    LogitsProcessors,
)

from vllm_specvlm.engine.options import PROPOSER

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig


def install() -> None:
    """Let requests of our engines ask for `min_p` and `logit_bias`; those of other methods are refused as before."""
    stock = SamplingParams._validate_spec_decode
    if getattr(stock, "_specvlm", False):
        return

    @functools.wraps(stock)
    def validate(self: SamplingParams, speculative_config: SpeculativeConfig | None) -> None:
        if speculative_config is None or speculative_config.model != PROPOSER:
            stock(self, speculative_config)

    validate._specvlm = True  # type: ignore[attr-defined]
    SamplingParams._validate_spec_decode = validate


@contextmanager
def all_processors() -> Iterator[None]:
    """While a model runner is built: it gets the logits processors of an engine without speculation."""
    from vllm.v1.worker import gpu_model_runner

    stock = gpu_model_runner.build_logitsprocs

    def build(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> LogitsProcessors:
        plain = copy(vllm_config)
        plain.speculative_config = None
        return stock(plain, *args, **kwargs)

    gpu_model_runner.build_logitsprocs = build
    try:
        yield
    finally:
        gpu_model_runner.build_logitsprocs = stock


def custom_processor(processors: LogitsProcessors, row: int) -> str | None:
    """The class name of a processor, not vLLM's own, that deals with the request in this row of the batch; or None.

    One that is not made of a function per request (`AdapterLogitsProcessor`) deals with everybody.
    """
    for processor in processors.all:
        if type(processor) in BUILTIN_LOGITS_PROCESSORS:
            continue
        if not isinstance(processor, AdapterLogitsProcessor) or row in processor.req_info:
            return type(processor).__name__
    return None
