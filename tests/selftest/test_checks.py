"""Every check of the self-test passes on what is right and fails on what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels import emulated
from vllm_specvlm import ops
from vllm_specvlm.engine.attention_call import AttentionCall
from vllm_specvlm.engine.gathered_attention import GatheredAttention
from vllm_specvlm.engine.trial import LayerKind
from vllm_specvlm.ops.wrappers import Wrapped
from vllm_specvlm.selftest import attention, decisions, instructions
from vllm_specvlm.selftest.check import Check, Outcome, guarded
from vllm_specvlm.selftest.speed import CASES, Case, Problem

CPU = torch.device("cpu")


def failed(checks: Any) -> list[str]:
    return [check.name for check in checks if check.outcome is Outcome.FAILED]


@pytest.mark.slow
@pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with")
def test_the_emulated_instructions_are_those_of_the_manual() -> None:
    emulated.library()

    def run(left: torch.Tensor, right: torch.Tensor, exponents: torch.Tensor) -> Wrapped:
        words = [torch.zeros(32, 4, dtype=torch.int32) for _ in range(3)]
        found = Wrapped(words[0], words[1], words[2], torch.zeros(2, 32, 4), torch.zeros(32))
        torch.ops.vllm_specvlm_emulated.try_wrappers(left, right, exponents, *found)
        return found

    found = list(instructions.check(run))
    assert len(found) == 10
    assert not failed(found)


@pytest.mark.parametrize("name", Wrapped._fields)
def test_a_wrong_instruction_is_noticed(name: str) -> None:
    assert not failed(instructions.check(ops.wrappers_reference))

    def wrong(left: torch.Tensor, right: torch.Tensor, exponents: torch.Tensor) -> Wrapped:
        found = ops.wrappers_reference(left, right, exponents)
        value = getattr(found, name)
        return found._replace(**{name: value + (1 if value.dtype == torch.int32 else value.abs() * 1e-6 + 1e-6)})

    assert len(failed(instructions.check(wrong))) == 2  # one for each dtype


def test_kernels_of_the_cpu() -> None:
    grid = attention.kinds((64,), 32, quick=True)
    assert len(grid) == 6
    found = list(attention.check(attention.CpuAttention(), grid, CPU, 1))
    assert [check.outcome for check in found] == [Outcome.PASSED] * 3
    assert all(0 < check.figures["error"] <= check.figures["allowed"] for check in found)


class _Shifted(GatheredAttention):
    """Takes other values than it should."""

    def attend(self, call: AttentionCall) -> None:
        super().attend(call)
        call.out.add_(0.02)


def test_wrong_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [LayerKind(4, 4, 64, torch.bfloat16)]
    assert not failed(attention.check(attention.plain_torch(), grid, CPU, 1))
    assert failed(attention.check(_Shifted(), grid, CPU, 1))
    monkeypatch.setattr(ops, "commit_rows", lambda *arguments: None)
    assert failed(attention.check_commit(grid, CPU))
    monkeypatch.setattr(ops, "commit_rows", ops.commit_rows_reference)
    assert not failed(attention.check_commit(grid, CPU))


def test_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of a GPU all agree, and other decisions are noticed."""
    found = list(decisions.check(CPU))
    assert len(found) == 4 and not failed(found)
    assert len(list(decisions.check(None))) == 1
    stock = ops.walk_trees
    monkeypatch.setattr(ops, "walk_trees", lambda *a, **k: stock(*a, **k)._replace(counts=torch.zeros(40).int()))
    assert failed(decisions.check(None)) == ["walks on cpu"]
    calls: list[int] = []
    race = ops.race

    def second_differs(probs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return race(probs, keys) + (len(calls) == 2)

    monkeypatch.setattr(ops, "race", second_differs)
    assert failed(decisions.races(CPU)) == ["races on cpu"]
    describe = ops.GrowingTrees.describe
    monkeypatch.setattr(ops.GrowingTrees, "describe", lambda self, bits: describe(self, bits + len(calls)))
    grow = ops.GrowingTrees.grow
    monkeypatch.setattr(
        ops.GrowingTrees,
        "grow",
        lambda self, tokens, *rest: (calls.append(1), grow(self, tokens + len(calls) % 2, *rest)),
    )
    assert failed(decisions.growth(CPU)) == ["growth on cpu"]


def test_a_check_that_raises_has_failed() -> None:
    def explode() -> Any:
        yield Check.judged("first", True, "well")
        raise RuntimeError("no such kernel\nand more")

    (only,) = guarded("kernels", explode)[-1:]
    assert (only.name, only.outcome, only.detail) == ("kernels", Outcome.FAILED, "RuntimeError: no such kernel")


def test_competitors_get_the_same_problem() -> None:
    """What FlexAttention and xformers are given, contiguous keys and a mask, is what our step says."""
    case = Case("tiny", query_heads=4, heads=2, batch=2, context=37, nodes=11, head_size=64)
    problem = Problem(case, CPU)
    out = torch.empty_like(problem.query)
    GatheredAttention().attend(problem.call(out))
    keys, values = (states.transpose(1, 2).repeat_interleave(2, 1).float() for states in problem.contiguous())
    query = problem.query.view(2, 11, 4, 64).transpose(1, 2).float()
    mask = torch.cat([torch.ones(11, 37, dtype=torch.bool), problem.visible()], dim=1)
    other = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=problem.scale)
    assert (other.transpose(1, 2).flatten(0, 1) - out.float()).abs().max() < 1e-2
    assert problem.visible().sum() == sum(len(path) for path in _paths(problem.parents))
    assert case.key_bytes == 2 * 48 * 2 * 64 * 4
    assert len(CASES) == 16


def _paths(parents: list[int]) -> list[list[int]]:
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return paths
