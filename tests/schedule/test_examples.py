"""The shipped example of a profile and a trace: it gives the predictions that were compared with real engines."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from vllm_specvlm.schedule import trace
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.schedule.profile import Profile
from vllm_specvlm.schedule.simulator import simulate
from vllm_specvlm.tree.tree_shape import TreeShape

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
EXAMPLE = BENCHMARKS / "examples" / "reference-epyc"
SHAPE = TreeShape(nodes=32, depth=6, width=4, top_k=4)


@pytest.fixture(scope="module")
def compared() -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = json.loads((BENCHMARKS / "results" / "simulator.json").read_text())["rows"]
    return rows


def predicted(policy: str, concurrency: int) -> float:
    profile = Profile.load(EXAMPLE.with_suffix(".profile.json"))
    requests = trace.read(EXAMPLE.with_suffix(".trace.jsonl"))
    replayed = list(itertools.islice(itertools.cycle(requests), max(32, 2 * concurrency)))
    return simulate(replayed, profile.costs, profile.overhead, policy, concurrency, SHAPE, warm=True).tokens_per_s


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("policy", ["plain", "chain-5", "tree-8"])
def test_the_example_gives_the_recorded_predictions(
    policy: str, concurrency: int, compared: list[dict[str, float | str]]
) -> None:
    (row,) = [row for row in compared if (row["policy"], row["concurrency"]) == (policy, concurrency)]
    assert predicted(policy, concurrency) == pytest.approx(row["predicted_tokens_per_s"], rel=1e-3)


def test_the_planner_of_today_is_no_worse_on_it_than_the_fixed_policies() -> None:
    for concurrency in (1, 4, 16):
        fixed = max(predicted(policy, concurrency) for policy in ("plain", "chain-5", "tree-8"))
        assert predicted("planned", concurrency) > 0.97 * fixed


@pytest.mark.parametrize("requests", [1, 4, 16, 64])
def test_a_useless_draft_costs_less_than_three_percent_while_it_is_found_out(requests: int) -> None:
    """On the costs measured there: from the first step on, requests caught up but for their prompts of 60 tokens."""
    profile = Profile.load(EXAMPLE.with_suffix(".profile.json"))
    planner, costs = Planner(profile.costs), profile.costs
    planner.overhead = profile.overhead
    plain = costs.plain.at(requests)
    spent, backlogs = 0.0, [60] * requests
    for _ in range(200):
        plan = planner.plan(requests, [Candidate(str(i), backlog, 100.0, Kind()) for i, backlog in enumerate(backlogs)])
        took = plain
        backlogs = [backlog + 1 for backlog in backlogs]
        if plan.mode is not Mode.PLAIN:
            nodes = sum(planner.cut({i: ([-9.0] * 4, [1, 2, 3, 4]) for i in range(len(plan.chosen))}))
            read = sum(backlogs[i] for i in plan.chosen)
            drafted = costs.feed.at(read) + 3 * costs.draft.at(len(plan.chosen)) + planner.overhead
            took = drafted + costs.tree.at(requests + nodes)
            for i in plan.chosen:
                backlogs[i] = 0
        planner.achieved(requests, requests, took)
        spent += took
    assert 200 * plain / spent > 0.97
