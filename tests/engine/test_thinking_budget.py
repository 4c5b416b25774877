"""Thoughts followed token by token are what vLLM finds in the whole answer, at a cost that does not grow with it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from vllm_specvlm.engine.thinking_budget import ThinkingBudgets

CPU = torch.device("cpu")
MARKS = [([1], [2]), ([1, 2], [3, 3]), ([1, 1], [1, 2]), ([4], [1, 2, 3])]


def stock(config: Any, params: SamplingParams, prompt: list[int], answer: list[int]) -> dict[str, Any]:
    """vLLM's own state, told of one token after the other."""
    holder = ThinkingBudgetStateHolder(config, 1, 0, CPU, False)
    holder.sync_batch(BatchUpdate(batch_size=1, removed=(), added=[(0, params, prompt, [])], moved=()))
    for upto in range(len(answer) + 1):
        holder.update_state([answer[:upto]], None)
    return holder._state[0]


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_random_answers(begin: list[int], end: list[int]) -> None:
    config: Any = SimpleNamespace(reasoning_start_token_ids=begin, reasoning_end_token_ids=end)
    draw = random.Random(1)
    thought = 0
    for _ in range(60):
        prompt = draw.choices(range(1, 5), k=draw.randint(0, 6))
        answer = draw.choices(range(1, 5), k=draw.randint(1, 24))
        params = SamplingParams(thinking_token_budget=draw.randint(0, 6))
        budgets, at = ThinkingBudgets(config, CPU), 0
        while at < len(answer):  # a root and a chain of nodes, then on from anywhere in it
            last = min(at + draw.randint(1, 4), len(answer))
            paths = [answer[:upto] for upto in range(at, last + 1)]
            states = budgets.along("0", params, prompt, paths, range(-1, last - at - 1))
            for path, state in zip(paths, states, strict=True):
                wanted = stock(config, params, prompt, path)
                assert {**state, "scan_offset": 0} == {**wanted, "scan_offset": 0}
                thought += bool(wanted["in_think"] or wanted["in_end"])
            at = draw.randint(at + 1, last)
    assert thought > 50


def test_long_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks for marks in what was looked through before."""
    config: Any = SimpleNamespace(reasoning_start_token_ids=[1, 2], reasoning_end_token_ids=[3, 3])
    find, searched = ThinkingBudgetStateHolder._find_last_sequence_index, []

    def noted(text: list[int], mark: list[int]) -> int:
        searched.append(len(text))
        return find(text, mark)

    monkeypatch.setattr(ThinkingBudgetStateHolder, "_find_last_sequence_index", staticmethod(noted))
    budgets, answer = ThinkingBudgets(config, CPU), [1, 2, *[7] * 500]
    params = SamplingParams(thinking_token_budget=2000)
    budgets.along("0", params, [], [answer], [])
    states = budgets.along("0", params, [], [answer, [*answer, 8], [*answer, 8, 9]], [-1, 0])
    assert all(state["in_think"] or state["start_thinking"] == 0 for state in states)
    assert searched and max(searched) <= 2
