"""Plain and speculative engines on tiny checkpoints, kept for the whole run."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams

from tests.tiny.checkpoints import build
from tests.tiny.prompts import Prompt
from vllm_specvlm.engine import plugin
from vllm_specvlm.engine.runner import TreeModelRunner
from vllm_specvlm.engine.speculator import Speculator

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)

_BASE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 2},
    "kv_cache_memory_bytes": 16 << 20,
    "block_size": 32,
    "seed": 0,
    "disable_log_stats": True,
}

# vLLM tears down its process groups when an engine is collected, and they belong to all engines of the process.
_kept: dict[str, LLM] = {}


def engine(model: Path, speculative: Mapping[str, Any] | None = None, **options: Any) -> LLM:
    """An engine with these options; the same arguments give the same engine, with its caches emptied.

    Trees have the options' own size unless the planner is asked for: what is tested then happens in every step.
    """
    plugin.register()
    arguments = {**_BASE, **options, "model": str(model)}
    key = repr((sorted(arguments.items(), key=str), speculative))
    llm = _kept.get(key)
    if llm is None:
        fixed: dict[str, Any] = {"method": "specvlm", "planner": False}
        if speculative is not None and "paths" not in speculative:
            fixed["num_speculative_tokens"] = 8
        config = None if speculative is None else {**fixed, **speculative}
        llm = _kept[key] = LLM(**arguments, speculative_config=config)
        gc.freeze()  # what is kept need not be searched for garbage by every engine to come
    elif isinstance(drafter := getattr(runner(llm), "drafter", None), Speculator):
        drafter.tally.drafter_failures = 0  # another test may have made it fail
    assert llm.reset_prefix_cache()
    return llm


def runner(llm: LLM) -> TreeModelRunner:
    """The model runner of an in-process engine."""
    found: TreeModelRunner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    return found


def tally(llm: LLM) -> dict[str, Any]:
    """The worker's counters."""
    counted: dict[str, Any] = llm.collective_rpc("specvlm_tally")[0]
    return counted


def answers(llm: LLM, prompts: Sequence[Prompt], params: Any = GREEDY) -> list[RequestOutput]:
    """Generate for all prompts at once, in order."""
    return llm.generate([prompt.request() for prompt in prompts], params, use_tqdm=False)


def tokens(outputs: Sequence[RequestOutput]) -> list[tuple[int, ...]]:
    """The token ids of each request's first answer."""
    return [tuple(output.outputs[0].token_ids) for output in outputs]


@dataclass(frozen=True)
class Scenario:
    """Engine options that make vLLM take another way, and how often the prompts are submitted."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    copies: int = 1
    max_tokens: int = 40

    def params(self, **changes: Any) -> SamplingParams:
        """Greedy parameters of this scenario's length."""
        return SamplingParams(**{"temperature": 0.0, "max_tokens": self.max_tokens, "ignore_eos": True, **changes})


# 16 blocks of 32 tokens hold one request to its end, never all of them: vLLM has to preempt.
SCENARIOS = (
    Scenario("batch"),
    Scenario("chunked prefill and prefix hits", {"max_num_batched_tokens": 40, "max_num_seqs": 3}, rounds=2),
    Scenario("preemption", {"num_gpu_blocks_override": 17, "max_num_seqs": 7}, copies=2, max_tokens=90),
    Scenario("large blocks, no prefix caching", {"block_size": 128, "enable_prefix_caching": False}, copies=2),
    Scenario("to max_model_len", {"max_model_len": 384}, max_tokens=512),
)


def preemptions(llm: LLM) -> int:
    """How often this engine preempted a request since `count_preemptions`."""
    return _preempted.get(id(llm), 0)


def count_preemptions(llm: LLM) -> None:
    """Start counting, by listening to the scheduler."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    stock = type(scheduler)._preempt_request
    _preempted[id(llm)] = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        _preempted[id(llm)] += 1
        return stock(scheduler, *args, **kwargs)

    scheduler._preempt_request = counted


_preempted: dict[int, int] = {}


def target_of(family: str) -> Path:
    """The tiny target of a family."""
    return build(family)
