"""Engines that take the GPU's road on the CPU device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from tests.exactness import gpu_stand_ins, gpu_worker, recorded_graphs
from tests.exactness.engines import engine, runner
from vllm_specvlm.engine import configure
from vllm_specvlm.engine.attention_gpu import TreeFlashAttentionImpl

WORKER = f"{gpu_worker.__name__}.GPUWorkerOnCPU"


def gpu_engine(model: Path, speculative: Mapping[str, Any], patch: pytest.MonkeyPatch, **options: Any) -> LLM:
    """As `engines.engine`; `patch` has put operators and FlashAttention in their places, for as long as it is used."""
    patch.setattr(configure, "WORKER", WORKER)
    # An option that no other engine has: those that are kept for other tests took another road.
    with patch.context() as here:
        recorded_graphs.install(here)
        llm = engine(model, speculative, **options, max_logprobs=21)
    found = runner(llm)
    assert isinstance(found, gpu_worker.GPURunnerOnCPU)
    layers = found.compilation_config.static_forward_context.values()
    assert {type(layer.impl) for layer in layers} == {TreeFlashAttentionImpl}
    return llm


def ways(llm: LLM) -> set[str]:
    """How the layers attend tree rows."""
    return set(llm.collective_rpc("specvlm_attention")[0])


flash_attention = gpu_stand_ins.flash_attention
