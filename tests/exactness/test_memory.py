"""A server runs for months: what is kept for a request is gone when the request is, however it ended."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.exactness.engines import answers, count_preemptions, engine, preemptions, runner, tally, target_of, tokens
from tests.exactness.held import holders, traced
from tests.exactness.test_plans import with_random_plans
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from tests.tiny.prompts import Prompt, many, prompts
from tests.tiny.sizes import DRAFT
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine.mixed_drafter import MixedDrafter

POOL = prompts("llava") + many("llava", 13)
LONGEST = 60
ROOM = {"num_gpu_blocks_override": 40, "max_num_seqs": 16, "max_num_batched_tokens": 256}
"""Forty blocks of 32 tokens for sixteen requests: many are preempted."""
KINDS = ("vlm", "head", "exit", "lookup")


def kept(llm: LLM, mark: str) -> list[str]:
    """Paths at which ids of requests of this name are still held."""
    # The runner itself is vLLM's own, with the requests of the step in hand; those are looked at by themselves.
    held = traced(holders(runner(llm)), mark, runner(llm))
    return held + [f"runner.requests[{name}]" for name in runner(llm).requests if name.startswith(mark)]


def free_blocks(llm: LLM) -> int:
    """KV blocks that nobody holds."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    count: int = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return count


def settle(llm: LLM) -> None:
    """vLLM tells the worker of the last requests that ended in a step of its own; a server makes it, `LLM` does not."""
    core = llm.llm_engine.engine_core.engine_core
    while core.scheduler.has_requests():
        core.step_fn()
        core.post_step(model_executed=True)


def _params(chance: random.Random, seed: int) -> SamplingParams:
    common: dict[str, Any] = {"max_tokens": chance.choice((1, 8, 24, LONGEST)), "ignore_eos": True}
    kind = chance.randrange(10)
    if kind == 0:
        return SamplingParams(temperature=1.0, seed=seed, **common)
    if kind == 1:
        regex = StructuredOutputsParams(regex="[a-z ]{4,20}")
        return SamplingParams(temperature=0.0, structured_outputs=regex, max_tokens=24)
    if kind == 2:
        wish = chance.choice(({"specvlm": "off"}, {"specvlm_nodes": 3}, {"specvlm_nodes": "lots"}, {"specvlm": 5}))
        return SamplingParams(temperature=0.0, extra_args=wish, **common)
    return SamplingParams(temperature=0.0, **common)


def run(llm: LLM, mark: str, count: int, seed: int) -> dict[str, tuple[Prompt, SamplingParams, tuple[int, ...]]]:
    """Many requests in bursts, a fifth of them aborted, some before their first step; the answers of the others."""
    chance = random.Random(seed)
    core = llm.llm_engine
    asked: dict[str, tuple[Prompt, SamplingParams]] = {}
    answered: dict[str, tuple[Prompt, SamplingParams, tuple[int, ...]]] = {}
    gone: set[str] = set()
    left = count
    while left or core.has_unfinished_requests():
        for _ in range(min(left, chance.choice((0, 0, 1, 12, 30)))):
            name = f"{mark}-{left}"
            asked[name] = chance.choice(POOL), _params(chance, left)
            core.add_request(name, asked[name][0].request(), asked[name][1])
            left -= 1
            if chance.random() < 0.04:
                core.abort_request([name])
                gone.add(name)
        for output in core.step():
            if output.finished:
                assert output.request_id not in answered, "answered twice"
                assert output.request_id not in gone, "answered after it was aborted"
                answered[output.request_id] = *asked[output.request_id], tuple(output.outputs[0].token_ids)
        running = [name for name in asked if name not in answered and name not in gone]
        if running and chance.random() < 0.1:
            leaving = chance.choice(running)
            core.abort_request([leaving])
            gone.add(leaving)
    settle(llm)
    assert len(answered) + len(gone) == count and len(gone) > count // 20
    return answered


def speculative(kind: str) -> dict[str, Any]:
    given: dict[str, Any] = {"num_speculative_tokens": 9, "planner": True, "vision_cache_mib": 1}
    if kind == "lookup":
        return {**given, "lookup_shared_tokens": 300}
    if kind == "vlm":
        return {**given, "model": str(build("llava", seed=7, size=DRAFT))}
    if kind == "exit":
        return {**given, "model": str(build_exit("llava"))}
    if kind == "mixed":
        return {**given, "model": str(build_exit("llava")), "with_lookup": True, "lookup_shared_tokens": 300}
    return {**given, "model": str(build_head("llava", CompressorConfig(kind="global"))), "feature_cache_mib": 1}


def check_answers(answered: Mapping[str, tuple[Prompt, SamplingParams, tuple[int, ...]]]) -> None:
    longest = SamplingParams(temperature=0.0, max_tokens=LONGEST, ignore_eos=True)
    plain = dict(zip(POOL, tokens(answers(engine(target_of("llava")), POOL, longest)), strict=True))
    greedy = [a for a in answered.values() if not a[1].temperature and a[1].structured_outputs is None]
    assert len(greedy) > len(answered) // 2
    for prompt, params, got in greedy:
        assert got == plain[prompt][: params.max_tokens], prompt.name


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("mixed", marks=pytest.mark.slow)])
def test_nothing_is_kept_of_requests_that_are_over(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(target_of("llava"), speculative(kind), **ROOM)
    planner = with_random_plans(llm, 5, monkeypatch)
    count_preemptions(llm)
    free = free_blocks(llm)
    before = tally(llm)
    check_answers(run(llm, "crowd", 300, 1))
    assert preemptions(llm) > 5 and len(set(planner.plans)) > 4
    after = tally(llm)
    assert after["trees"] > before["trees"] + 100 and after["drafter_failures"] == before["drafter_failures"]
    assert free_blocks(llm) == free
    # The latest batch that was drafted for may still be looked at, so one more request takes its place.
    run(llm, "last", 20, 2)
    assert kept(llm, "crowd") == []
    _check_bounds(runner(llm).drafter._drafter)


def _check_bounds(drafter: Any) -> None:
    """Caches count what they hold, and hold no more than they may."""
    vision, features = getattr(drafter, "_vision", None), getattr(drafter, "_features", None)
    pictures, ring = getattr(drafter, "_pictures", None), getattr(drafter, "_ring", None)
    if isinstance(drafter, MixedDrafter):
        assert not drafter._requests
        _check_bounds(drafter._lookup)
    if vision is not None:
        assert vision._bytes == sum(tensor.nbytes for tensor in vision._cache.values()) <= 1 << 20
        assert vision._pixel_bytes <= 1 << 20 and bool(vision._pixels) == bool(vision._pixel_bytes)
    if features is not None:
        assert features._bytes == 0 and not features._chunks
    if pictures is not None:
        assert pictures._bytes == sum(tensor.nbytes for tensor in pictures._kept.values()) <= 1 << 20
    if ring is not None:
        assert len(ring) <= 300 and len(ring._latest) <= 300


@pytest.mark.parametrize("kind", KINDS)
def test_objects_do_not_add_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second and third crowd leave no more objects of ours than the first."""
    llm = engine(target_of("llava"), speculative(kind), **ROOM)
    with_random_plans(llm, 6, monkeypatch)
    counts = []
    for number in range(3):
        run(llm, f"round {number}", 120, number)
        gc.collect()
        counts.append(sum(type(each).__module__.startswith("vllm_specvlm") for each in gc.get_objects()))
    assert counts[2] <= counts[0] + 200, counts  # the latest batch's trees and rows are more or fewer


def test_a_drafter_that_is_off_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was doing when it failed."""
    llm = engine(target_of("llava"), {**speculative("vlm"), "num_speculative_tokens": 5}, **ROOM)
    speculator = runner(llm).drafter
    drafter = speculator._drafter
    calls: list[int] = []

    def sometimes(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 40:
            raise MemoryError("injected")
        return stock(*args)

    stock = drafter.propose_level
    monkeypatch.setattr(drafter, "propose_level", sometimes)
    del drafter
    with_random_plans(llm, 7, monkeypatch)
    free = free_blocks(llm)
    check_answers(run(llm, "crowd", 150, 3))
    assert speculator._drafter is None and free_blocks(llm) == free
    assert kept(llm, "crowd") == []


def test_what_is_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: the search sees ids in every kind of hiding place."""
    llm = engine(target_of("llava"), speculative("vlm"), **ROOM)
    speculator = runner(llm).drafter
    assert kept(llm, "hidden") == []
    with monkeypatch.context() as patch:
        patch.setitem(speculator._eligible._wishes, "hidden-1", None)
        patch.setitem(speculator._model._fed, "hidden-2", 3)
        patch.setitem(speculator._planning.growth._sent, "hidden-3", None)
        patch.setattr(speculator._model._choice, "_guesses", [(("hidden-4", 7),)])
        patch.setitem(runner(llm).tree_sampler._seeds, "hidden-5", 1)
        assert len(kept(llm, "hidden")) == 5
    assert kept(llm, "hidden") == []
