"""Targets that are not what their checkpoint says: LoRA adapters chosen per request, int8 weights."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tests.exactness.engines import GREEDY, SCENARIOS, answers, engine, tally, target_of, tokens
from tests.exactness.grammars import grammar
from tests.tiny.adapters import build_adapter, quantise
from tests.tiny.checkpoints import build
from tests.tiny.prompts import prompts
from tests.tiny.sizes import DRAFT

# vLLM's CPU kernels take requests without an adapter for requests of the last slot (index -1): it must stay empty.
WITH_ADAPTERS: dict[str, Any] = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest | None]:
    """Two adapters and none, in turns."""
    folder = tmp_path_factory.mktemp("adapters")
    made = [str(build_adapter(target_of("llava"), folder / str(i), seed=i)) for i in range(2)]
    return [None, LoRARequest("first", 1, made[0]), LoRARequest("second", 2, made[1])]


def adapted(
    llm: LLM, adapters: list[LoRARequest | None], params: SamplingParams = GREEDY, rounds: int = 1
) -> list[tuple[int, ...]]:
    batch = prompts("llava")
    chosen = [adapters[i % len(adapters)] for i in range(len(batch))]
    said: list[tuple[int, ...]] = []
    for _ in range(rounds):
        said += tokens(llm.generate([p.request() for p in batch], params, lora_request=chosen, use_tqdm=False))
    return said


@pytest.mark.parametrize("scenario", SCENARIOS[:2], ids=lambda s: s.name)
@pytest.mark.parametrize("drafter", ["the target itself", "small", "lookup"])
def test_adapters_per_request(drafter: str, scenario: Any, adapters: list[LoRARequest | None]) -> None:
    """The target runs with each request's adapter; the draft knows none, and is wrong more often."""
    target = target_of("llava")
    models = {"the target itself": target, "small": build("llava", seed=7, size=DRAFT)}
    speculative: dict[str, Any] = {"num_speculative_tokens": 10}
    if drafter in models:
        speculative["model"] = str(models[drafter])
    options = {**scenario.options, **WITH_ADAPTERS}
    reference = adapted(engine(target, **options), adapters, rounds=scenario.rounds)
    free = tokens(answers(engine(target, **scenario.options), prompts("llava")))
    changed = [a != b for a, b in zip(reference, free * scenario.rounds, strict=True)]
    assert all(changed[i] == (i % 7 % 3 > 0) for i in range(len(changed))), "an adapter changed nothing"
    ours = engine(target, speculative, **options)
    before = tally(ours)
    assert adapted(ours, adapters, rounds=scenario.rounds) == reference
    after = tally(ours)
    assert after["trees"] > before["trees"] and after["drafter_failures"] == 0
    if drafter == "the target itself":
        assert after["accepted"] - before["accepted"] > 60


def test_adapters_under_the_planner(adapters: list[LoRARequest | None]) -> None:
    """Passes of a target with adapters are timed at start, as any other's."""
    target = target_of("llava")
    ours = engine(target, {"model": str(target), "planner": True}, **WITH_ADAPTERS)
    assert adapted(ours, adapters) == adapted(engine(target, **WITH_ADAPTERS), adapters)


def test_sampled_adapters(adapters: list[LoRARequest | None]) -> None:
    target = target_of("llava")
    params = SamplingParams(
        temperature=0.8, seed=3, max_tokens=30, ignore_eos=True, structured_outputs=grammar("regex")
    )
    drafted = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **WITH_ADAPTERS)
    lookup = engine(target, {"num_speculative_tokens": 10}, **WITH_ADAPTERS)
    assert adapted(drafted, adapters, params) == adapted(lookup, adapters, params)


@pytest.mark.parametrize("scenario", SCENARIOS[:2], ids=lambda s: s.name)
def test_int8_target(scenario: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Weights and activations in int8: a row's rounding depends on that row alone."""
    folder = tmp_path_factory.getbasetemp() / "int8"
    target = folder if folder.exists() else quantise(target_of("llava"), folder)
    batch = prompts("llava")

    def play(llm: LLM) -> list[tuple[int, ...]]:
        return [a for _ in range(scenario.rounds) for a in tokens(answers(llm, batch, scenario.params()))]

    reference = play(engine(target, **scenario.options))
    assert reference != play(engine(target_of("llava"), **scenario.options)), "int8 changed nothing"
    itself = engine(target, {"model": str(target), "num_speculative_tokens": 4, "tree": "chain"}, **scenario.options)
    unquantised = engine(target, {"model": str(target_of("llava")), "num_speculative_tokens": 10}, **scenario.options)
    for llm in (itself, unquantised):
        before = tally(llm)
        assert play(llm) == reference
        after = tally(llm)
        nodes, accepted = (after[name] - before[name] for name in ("nodes", "accepted"))
        assert accepted > 50
        if llm is itself:
            assert accepted == nodes, "a draft equal to its target was rejected"
