"""Budgets of thoughts on trees: their end is forced where plain vLLM forces it, whatever was drafted."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import LLM, RequestOutput, SamplingParams
from vllm.config import ReasoningConfig

from tests.exactness.engines import SCENARIOS, Scenario, answers, engine, runner, tally, target_of, tokens
from tests.exactness.test_grammars import knowing
from tests.exactness.test_requests import same_logprobs
from tests.tiny.prompts import prompts
from vllm_specvlm.engine.thinking_budget import ThinkingBudgets, Thoughts

END = " blue tale!"
BUDGETS = (0, 3, None, 7, 12, 20, 1)


def thinking() -> dict[str, Any]:
    """Engine options: an answer begins with thoughts. vLLM fills a configuration in, so each engine has its own."""
    return {"reasoning_config": ReasoningConfig(reasoning_start_str="ASSISTANT:", reasoning_end_str=END)}


def budgeted(count: int, **more: Any) -> list[SamplingParams]:
    """Parameters of a batch: every request with another budget, some without."""
    return [
        SamplingParams(
            **{"temperature": 0.0, "max_tokens": 48, "ignore_eos": True, **more},
            thinking_token_budget=BUDGETS[i % len(BUDGETS)],
        )
        for i in range(count)
    ]


def ends(llm: LLM, output: RequestOutput) -> bool:
    """Whether somebody ended the answer's thoughts."""
    ids = llm.get_tokenizer().encode(END, add_special_tokens=False)
    said = list(output.outputs[0].token_ids)
    return any(said[at : at + len(ids)] == ids for at in range(len(said)))


@pytest.mark.parametrize("scenario", SCENARIOS[:2], ids=lambda s: s.name)
def test_trees(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**scenario.options, **thinking()}
    batch = prompts("llava")
    plain = engine(target_of("llava"), **options)
    reference = answers(plain, batch, budgeted(len(batch)))
    asked = [i for i in range(len(batch)) if BUDGETS[i % len(BUDGETS)] is not None]
    assert [i for i, output in enumerate(reference) if ends(plain, output)] == asked
    llm = knowing(reference, monkeypatch, **options)
    before = tally(llm)
    outputs = answers(llm, batch, budgeted(len(batch)))
    after = tally(llm)
    assert tokens(outputs) == tokens(reference)
    assert after["accepted"] - before["accepted"] > after["trees"] - before["trees"] > 20


@pytest.mark.parametrize("feature", [{"logprobs": 2}, {"repetition_penalty": 1.2, "min_tokens": 9}], ids=str)
def test_other_features_beside(feature: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = prompts("llava")
    reference = answers(engine(target_of("llava"), **thinking()), batch, budgeted(len(batch), **feature))
    llm = knowing(reference, monkeypatch, **thinking())
    before = tally(llm)["accepted"]
    outputs = answers(llm, batch, budgeted(len(batch), **feature))
    assert tokens(outputs) == tokens(reference)
    for a, b in zip(outputs, reference, strict=True):
        same_logprobs(a, b)
    assert tally(llm)["accepted"] > before + 30


def test_sampled_answers_do_not_depend_on_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = prompts("llava")
    sampled = {"temperature": 0.8, "seed": 4}
    target = target_of("llava")
    drafted = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **thinking())
    without = answers(drafted, batch, budgeted(len(batch), **sampled, extra_args={"specvlm": "off"}))
    assert sum(ends(drafted, output) for output in without) >= 5
    assert tokens(answers(drafted, batch, budgeted(len(batch), **sampled))) == tokens(without)


@pytest.mark.parametrize("drafter", ["itself", "off", "lookup"])
def test_a_budget_ends_with_its_request(drafter: str) -> None:
    """vLLM keeps it for whoever moves into the request's row; what that one says must not depend on what is drafted."""
    batch, target = prompts("llava")[3:5], target_of("llava")
    extra = {"extra_args": {"specvlm": "off"}} if drafter == "off" else {}

    def params() -> list[SamplingParams]:
        first = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, thinking_token_budget=30)
        return [first, SamplingParams(temperature=0.0, max_tokens=45, ignore_eos=True, **extra)]

    own = answers(engine(target), batch[1:], params()[1:])
    lookup = {"num_speculative_tokens": 4, "lookup_min_match": 3}
    llm = engine(
        target,
        lookup if drafter == "lookup" else {"model": str(target), "num_speculative_tokens": 8},
        **thinking(),
    )
    outputs = answers(llm, batch, params())
    assert tokens(outputs)[1:] == tokens(own)
    assert not ends(llm, outputs[1])


def test_a_request_without_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded plainly for another reason keeps its budget beside trees, which vLLM's own way would misplace."""
    batch = prompts("llava")
    target = target_of("llava")

    def params() -> list[SamplingParams]:
        made = budgeted(len(batch))
        made[3].logprob_token_ids = [40, 41]
        return made

    plain = engine(target, **thinking())
    reference = answers(plain, batch, params())
    assert ends(plain, reference[3])
    drafted = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **thinking())
    before = tally(drafted)["accepted"]
    assert tokens(answers(drafted, batch, params())) == tokens(reference)
    assert tally(drafted)["accepted"] > before + 30


def test_control_the_roots_thoughts_everywhere_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that does not count the path."""
    batch = prompts("llava")
    reference = answers(engine(target_of("llava"), **thinking()), batch, budgeted(len(batch)))
    llm = knowing(reference, monkeypatch, **thinking())
    along = ThinkingBudgets.along

    def of_the_root(self: ThinkingBudgets, *args: Any) -> list[Thoughts]:
        states = along(self, *args)
        return [states[0]] * len(states)

    monkeypatch.setattr(ThinkingBudgets, "along", of_the_root)
    said = tokens(answers(llm, batch, budgeted(len(batch))))
    assert sum(a != b for a, b in zip(said, tokens(reference), strict=True)) >= 2


def test_nothing_is_kept() -> None:
    target = target_of("llava")
    drafted = engine(target, {"model": str(target), "num_speculative_tokens": 10}, **thinking())
    answers(drafted, prompts("llava"), budgeted(len(prompts("llava"))))
    answers(drafted, prompts("llava")[:1], budgeted(1))
    assert len(runner(drafted).tree_sampler._budgets._known) <= 1
