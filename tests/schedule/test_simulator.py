"""The simulator against sums done by hand, and the planner under it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from vllm_specvlm.schedule import simulator
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.forced_planner import ForcedPlanner
from vllm_specvlm.schedule.simulator import Prediction, simulate
from vllm_specvlm.schedule.trace import RecordedTree, TracedRequest


def flat(seconds: float) -> CostCurve:
    return CostCurve({1: seconds, 8192: seconds})


def per_row(seconds: float) -> CostCurve:
    return CostCurve({1: seconds, 8192: seconds * 8192})


IDLE = Costs(flat(0.010), flat(0.010), flat(0.001), flat(0.001))
"""Rows are free: a step takes 10 ms, a draft pass 1 ms."""
BUSY = Costs(per_row(0.010), per_row(0.010), flat(0.001), flat(0.001))
"""Every row takes 10 ms."""


def chain(at: int, tokens: int, accepted: int, nodes: int = 4, belief: float = -0.05) -> RecordedTree:
    """A chain of which so many nodes are accepted, as far as the answer goes."""
    path = tuple(range(min(accepted, nodes, tokens - at)))
    return RecordedTree(at, tuple(range(-1, nodes - 1)), (belief,) * nodes, path)


def answer(tokens: int, accepted: int, prompt: int = 1, belief: float = -0.05) -> TracedRequest:
    trees = tuple(chain(at, tokens, accepted, belief=belief) for at in range(1, tokens))
    return TracedRequest(prompt, tokens, trees)


def play(
    trace: Sequence[TracedRequest], costs: Costs, policy: str, concurrency: int = 1, overhead: float = 0.0
) -> Prediction:
    return simulate(trace, costs, overhead, policy, concurrency)


def test_plain() -> None:
    """One step for the prompt and the first token, twenty for the others."""
    found = play([answer(21, 4)], IDLE, "plain")
    assert found.seconds == pytest.approx(0.010 + 20 * 0.010)
    assert (found.tokens, found.steps, found.trees) == (21, 21, 0)
    assert found.acceptance_length == 1.0


def test_a_chain_that_is_always_accepted() -> None:
    """Five tokens a step: four times four draft passes and a step."""
    found = play([answer(21, 4)], IDLE, "chain-4")
    assert found.seconds == pytest.approx(0.010 + 4 * (4 * 0.001 + 0.010))
    assert (found.steps, found.trees, found.nodes, found.accepted) == (5, 4, 16, 16)
    assert found.acceptance_length == 5.0
    assert found.tokens_per_s == pytest.approx(21 / 0.066)


def test_a_chain_that_is_never_accepted() -> None:
    """One token a step, and all drafting is lost."""
    found = play([answer(21, 0)], IDLE, "chain-4", overhead=0.002)
    assert found.seconds == pytest.approx(0.010 + 20 * (4 * 0.001 + 0.002 + 0.010))
    assert found.accepted == 0


def test_a_shorter_chain_than_recorded() -> None:
    """Three tokens a step from the trees at positions 1, 4, 7, ...; rows cost here: 10 ms each."""
    found = play([answer(22, 4)], BUSY, "chain-2")
    assert found.seconds == pytest.approx(0.010 + 7 * (2 * 0.001 + 3 * 0.010))


def test_an_answer_takes_no_more_than_it_has() -> None:
    """Of the last tree only what is left of the answer counts."""
    found = play([answer(8, 4)], IDLE, "chain-4")
    assert found.tokens == 8
    assert (found.steps, found.accepted) == (3, 5)  # 1, 1 + 4 and 1 + 1 tokens


def test_siblings() -> None:
    """The target takes the second best child: a tree of two has it, a chain of two has not."""
    trees = tuple(RecordedTree(at, (-1, -1, 0), (-0.7, -0.8, -0.3), (1,)) for at in range(1, 11))
    trace = [TracedRequest(1, 11, trees)]
    assert play(trace, IDLE, "tree-2").acceptance_length == 2.0
    assert play(trace, IDLE, "chain-2").acceptance_length == 1.0


def test_the_nearest_tree_before_stands_in() -> None:
    request = TracedRequest(1, 21, (chain(1, 21, 4),))
    assert play([request], IDLE, "chain-4").steps == 5
    nothing = TracedRequest(1, 21)
    assert play([nothing], IDLE, "chain-4").accepted == 0


def test_a_batch_shares_its_steps() -> None:
    """Prompts of 30 ms alone add 20 ms each to a step; two then decode together."""
    costs = Costs(CostCurve({1: 0.010, 2: 0.012, 8192: 0.012}), flat(0.010), flat(0.001), flat(0.001))
    trace = [dataclasses.replace(answer(5, 0), prompt_seconds=0.030) for _ in range(2)]
    assert play(trace, costs, "plain", 2).seconds == pytest.approx(0.010 + 2 * 0.020 + 4 * 0.012)
    assert play(trace, costs, "plain", 1).seconds == pytest.approx(2 * (0.030 + 4 * 0.010))


def test_a_free_place_is_taken_at_once() -> None:
    """The third prompt joins the step after the first answer ended."""
    costs = Costs(flat(0.010), flat(0.010), flat(0.001), flat(0.001))
    trace = [answer(2, 0), answer(4, 0), answer(3, 0)]
    # Steps: prompts of 1 and 2; both decode and 1 ends; 2 decodes and 3 starts; both decode and 2 ends; 3 decodes.
    assert play(trace, costs, "plain", 2).steps == 5


def test_arrivals() -> None:
    trace = [answer(3, 0), dataclasses.replace(answer(3, 0), arrival=1.0)]
    assert play(trace, IDLE, "plain", 2).seconds == pytest.approx(1.0 + 3 * 0.010)


def test_the_drafter_has_to_read_the_prompt_first() -> None:
    """99 prompt rows and the root in the first pass, then what each step added and the root."""
    costs = Costs(flat(0.010), flat(0.010), per_row(0.0001), per_row(0.0001))
    found = play([answer(5, 1, prompt=99)], costs, "chain-1")
    first = 0.0001 * 100
    assert found.seconds == pytest.approx(0.010 + (first + 0.010) + (0.0001 * 3 + 0.010))


def test_the_planner_speculates_where_rows_are_free() -> None:
    trace = [answer(200, 4)]
    planned, plain = (play(trace, IDLE, policy, overhead=0.0005) for policy in ("planned", "plain"))
    assert planned.plans["trees"] > 20
    assert planned.tokens_per_s > 2.5 * plain.tokens_per_s


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_planner_stays_out_where_every_row_costs_a_token(concurrency: int) -> None:
    trace = [answer(200, 2, belief=-0.7)] * 4
    planned, plain, chained = (play(trace, BUSY, policy, concurrency) for policy in ("planned", "plain", "chain-4"))
    assert planned.plans["trees"] == 0
    assert planned.tokens_per_s > 0.93 * plain.tokens_per_s
    assert chained.tokens_per_s < 0.93 * plain.tokens_per_s  # a loss was there to be had


def test_the_planner_finds_out_that_a_boastful_draft_is_wrong() -> None:
    trace = [answer(400, 0)] * 4
    costs = Costs(flat(0.010), per_row(0.005), flat(0.002), flat(0.002))
    planned, plain, chained = (play(trace, costs, policy, 4) for policy in ("planned", "plain", "chain-4"))
    assert planned.plans["plain"] > 0.9 * sum(planned.plans.values())
    assert planned.tokens_per_s > 0.9 * plain.tokens_per_s > chained.tokens_per_s


def test_a_planner_that_always_speculates_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: under the same trace and costs, the promise of the tests above can be broken."""
    monkeypatch.setattr(simulator, "Planner", lambda costs: ForcedPlanner(costs, 4))
    trace = [answer(200, 2, belief=-0.7)] * 4
    forced, plain = (play(trace, BUSY, policy, 4) for policy in ("planned", "plain"))
    assert forced.plans["trees"] > 0
    assert forced.tokens_per_s < 0.93 * plain.tokens_per_s


def test_a_warm_planner_has_nothing_to_learn() -> None:
    trace = [answer(40, 4)]
    cold = simulate(trace, IDLE, 0.0, "planned", 1)
    warm = simulate(trace, IDLE, 0.0, "planned", 1, warm=True)
    assert cold.plans["probe"] > 0 == warm.plans["probe"]
    assert warm.tokens == cold.tokens


@pytest.mark.parametrize("policy", ["plain", "planned", "tree-8", "chain-3"])
def test_the_same_again(policy: str) -> None:
    trace = [answer(30 + i, i % 5, prompt=10 + i, belief=-0.3) for i in range(6)]
    first, second = (play(trace, IDLE, policy, 3, 0.001) for _ in range(2))
    assert first == second
    assert first.tokens == sum(request.tokens for request in trace)


def test_the_profile_is_left_as_it_is() -> None:
    before = IDLE.tree.as_dict()
    play([answer(50, 4)], IDLE, "planned")
    assert IDLE.tree.as_dict() == before


@pytest.mark.parametrize("policy", ["tree", "tree-0", "chain-x", "eagle", "tree-128"])
def test_policies_that_are_none(policy: str) -> None:
    with pytest.raises(ValueError, match=r"policy|must be"):
        play([answer(5, 0)], IDLE, policy)


def test_nothing_to_simulate() -> None:
    with pytest.raises(ValueError, match="0 requests"):
        play([], IDLE, "plain")
    with pytest.raises(ValueError, match="concurrency of 0"):
        play([answer(5, 0)], IDLE, "plain", 0)
