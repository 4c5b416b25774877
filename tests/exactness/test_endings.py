"""A request ends inside an accepted path exactly where plain decoding ends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.exactness.engines import answers, engine, runner, target_of
from tests.tiny.prompts import prompts


@pytest.fixture(scope="module")
def engines() -> tuple[LLM, LLM]:
    target = target_of("llava")
    return engine(target), engine(target, {"model": str(target), "num_speculative_tokens": 6, "tree": "chain"})


def endings(llm: LLM, params: Any) -> list[tuple[Any, ...]]:
    outputs = [output.outputs[0] for output in answers(llm, prompts("llava"), params)]
    return [(tuple(o.token_ids), o.text, o.finish_reason, o.stop_reason) for o in outputs]


@pytest.mark.parametrize("length", range(1, 12))
def test_max_tokens(engines: tuple[LLM, LLM], length: int) -> None:
    plain, ours = engines
    params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
    assert endings(ours, params) == endings(plain, params)


@pytest.mark.parametrize("at", [3, 6, 8, 13])
def test_stop_token(engines: tuple[LLM, LLM], at: int) -> None:
    """Each request stops at a token of its own answer, somewhere inside what one step accepts."""
    plain, ours = engines
    free = endings(plain, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    params = [
        SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop_token_ids=[answer[0][at]])
        for answer in free
    ]
    reference = endings(plain, params)
    assert endings(ours, params) == reference
    assert all(reason == "stop" and len(ids) <= at + 1 for ids, _, reason, _ in reference)


@pytest.mark.parametrize("include", [False, True])
def test_stop_string(engines: tuple[LLM, LLM], include: bool) -> None:
    plain, ours = engines
    free = endings(plain, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    params = [
        SamplingParams(
            temperature=0.0, max_tokens=30, stop=[text[7:11]], include_stop_str_in_output=include, ignore_eos=True
        )
        for _, text, _, _ in free
    ]
    reference = endings(plain, params)
    assert endings(ours, params) == reference
    assert any(reason == "stop" for _, _, reason, _ in reference)


def test_end_of_sequence(engines: tuple[LLM, LLM], tmp_path: Path) -> None:
    """An end-of-sequence token that the model really emits: the one the first answer contains."""
    plain, _ = engines
    free = endings(plain, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    target = tmp_path / "target"
    shutil.copytree(target_of("llava"), target)
    settings = json.loads((target / "generation_config.json").read_text())
    settings["eos_token_id"] = [free[0][0][9]]
    (target / "generation_config.json").write_text(json.dumps(settings))
    params = SamplingParams(temperature=0.0, max_tokens=30)
    speculative = {"model": str(target), "num_speculative_tokens": 6, "tree": "chain"}
    reference = endings(engine(target), params)
    assert endings(engine(target, speculative), params) == reference
    assert reference[0][2] == "stop" and len(reference[0][0]) <= 10


def test_nothing_is_drafted_for_a_request_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor verified behind the token that ends it, wherever in an accepted path that stands; a draft with the target's
    weights would accept it."""
    target = target_of("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 6, "tree": "chain"})
    free = answers(llm, prompts("llava"), SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    stops = [output.outputs[0].token_ids[9] for output in free]
    drafted: list[tuple[int, list[int]]] = []
    speculator = runner(llm).drafter
    grow = speculator._grow

    def listening(drafter: Any, batch: Any) -> Any:
        trees = grow(drafter, batch)
        for growable in batch:
            state = runner(llm).requests[growable.request_id]
            (stop,) = state.sampling_params.stop_token_ids
            assert stop not in state.output_token_ids, "it has ended"
            drafted.append((stop, list(trees[growable.request_id].tokens)))
        return trees

    monkeypatch.setattr(speculator, "_grow", listening)
    params = [SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop_token_ids=[stop]) for stop in stops]
    said = answers(llm, prompts("llava"), params)
    assert all(output.outputs[0].finish_reason == "stop" for output in said)
    assert all(stop not in tokens[:-1] for stop, tokens in drafted)
    assert any(stop == tokens[-1] and len(tokens) < 6 for stop, tokens in drafted), "no tree was cut at an end"


@pytest.mark.parametrize("full", ["max_tokens", "max_model_len"])
def test_the_batch_that_is_planned_for_is_the_one_that_decodes(full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that have all the tokens they may have are no part of it, however many of them one step accepted."""
    target, asked = target_of("llava"), prompts("llava")
    llm = engine(target, {"model": str(target), "num_speculative_tokens": 6, "planner": True})
    lengths = [3 + 5 * i for i in range(len(asked))]
    if full == "max_model_len":
        read = answers(llm, asked, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        longest = max(len(output.prompt_token_ids or ()) for output in read) + 12
        llm = engine(
            target, {"model": str(target), "num_speculative_tokens": 6, "planner": True}, max_model_len=longest
        )
        lengths = [longest] * len(asked)
    speculator = runner(llm).drafter
    planner = speculator.planning.growth.planner
    plan, observe = planner.plan, speculator.observe_schedule
    planned: list[int] = []
    decoded: list[int] = []

    def planning(requests: int, candidates: Any) -> Any:
        planned.append(requests)
        return plan(requests, candidates)

    def scheduling(scheduled: Any) -> None:
        decoded.append(len(scheduled.num_scheduled_tokens))
        observe(scheduled)

    monkeypatch.setattr(planner, "plan", planning)
    monkeypatch.setattr(speculator, "observe_schedule", scheduling)
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    said = answers(llm, asked, params)
    assert all(output.outputs[0].finish_reason == "length" for output in said)
    first = decoded.index(len(asked))
    steps = [requests for requests in decoded[first + 1 :] if requests]
    assert len(set(steps)) > 2 and planned[-len(steps) - 1 :] == [*steps, 0]


def test_lookup_hears_an_answer_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that is full too: what comes last may be what the next request's text goes on with."""
    llm = engine(target_of("llava"), {})
    speculator = runner(llm).drafter
    told: dict[str, int] = {}
    text = speculator._text
    tell = text.tell

    def telling(drafter: Any, request_id: str, upto: int | None = None) -> None:
        tell(drafter, request_id, upto)
        told[request_id] = text._told[request_id]

    monkeypatch.setattr(text, "tell", telling)
    said = answers(llm, prompts("llava"), SamplingParams(temperature=0.0, max_tokens=17, ignore_eos=True))
    lengths = [len(output.prompt_token_ids or ()) + len(output.outputs[0].token_ids) for output in said]
    assert sorted(told.values()) == sorted(lengths)
