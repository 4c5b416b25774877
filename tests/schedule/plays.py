"""Planners over made-up costs, and steps played to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode
from vllm_specvlm.schedule.planner import Planner

READY = Candidate("0", backlog=0, remaining=100.0, kind=Kind())
IDLE_SHAPE = {1: 0.010, 8: 0.010, 64: 0.012, 512: 0.020}  # a GPU that waits for memory: rows are nearly free
BUSY_SHAPE = {1: 0.010, 2: 0.020, 64: 0.640}  # no idle arithmetic: every row costs a whole token
DRAFT = {1: 0.001, 64: 0.002}


def planner(step: dict[int, float], draft: dict[int, float] = DRAFT) -> Planner:
    return Planner(Costs(CostCurve(step), CostCurve(step), CostCurve(draft), CostCurve(draft)))


def ready(requests: int, like: Candidate = READY) -> list[Candidate]:
    """Requests that differ in nothing but their names."""
    return [replace(like, request_id=str(i)) for i in range(requests)]


def numbered(trees: Sequence[tuple[Sequence[float], Sequence[int]]]) -> dict[int, Any]:
    """Trees of all that were chosen."""
    return dict(enumerate(trees))


def play(
    planned: Planner, requests: int, accepted: float, steps: int, candidate: Candidate = READY
) -> list[tuple[Mode, int]]:
    """Steps in which every drafted node is believed to follow its parent with probability `accepted`; two children
    a node, at most four levels. What was planned: mode and nodes in all."""
    done: list[tuple[Mode, int]] = []
    for _ in range(steps):
        plan = planned.plan(requests, ready(requests, candidate))
        if plan.mode is Mode.PLAIN:
            planned.achieved(
                requests, requests, planned.costs.plain.at(requests)
            )  # before the next plan, as in the engine
            planned.costs.plain.observe(requests, planned.costs.plain.at(requests))
            done.append((plan.mode, 0))
            continue
        scores = {i: [np.log(accepted), np.log(accepted / 9)] for i in plan.chosen}
        depths = {i: [1, 1] for i in plan.chosen}
        for depth in range(1, 4):
            frontier = [np.log(accepted) * depth for _ in plan.chosen]
            admitted = planned.admit(depth, frontier)
            if not any(admitted):
                break
            for i, yes in zip(plan.chosen, admitted, strict=True):
                if yes:
                    scores[i] += [np.log(accepted) * (depth + 1), np.log(accepted) * depth + np.log(accepted / 9)]
                    depths[i] += [depth + 1] * 2
        order = {i: np.argsort(-np.array(scores[i]), kind="stable") for i in plan.chosen}
        kept = planned.cut(
            numbered([([scores[i][j] for j in order[i]], [depths[i][j] for j in order[i]]) for i in plan.chosen])
        )
        came = requests + sum(
            float(np.exp(np.sort(scores[i])[::-1][:n]).sum()) for i, n in zip(scores, kept, strict=True)
        )
        planned.achieved(requests, came, as_expected(planned, len(plan.chosen), requests + sum(kept)))
        done.append((plan.mode, sum(kept)))
    return done


def as_expected(planned: Planner, trees: int, rows: int) -> float:
    """Seconds of the drafting just planned, of so many trees, and of a step over so many rows."""
    drafted = planned.costs.feed.at(trees) + sum(planned.costs.draft.at(each) for each in planned._rows)
    return planned.overhead + drafted + planned.costs.tree.at(rows)


def keep(planned: Planner, requests: int, share: float, steps: int) -> list[Mode]:
    """Steps that come to `share` of what speculation promises; plain decoding comes to what it promises."""
    modes = []
    for _ in range(steps):
        plan = planned.plan(requests, ready(requests))
        modes.append(plan.mode)
        if plan.mode is Mode.PLAIN:
            planned.achieved(requests, requests, planned.costs.plain.at(requests))
            continue
        kept = planned.cut(numbered([(np.log([0.4, 0.05]).tolist(), [1, 1])] * len(plan.chosen)))
        if plan.mode is Mode.TREES:
            planned.achieved(requests, 1000, 1000 / (share * planned._promised))
        else:
            planned.achieved(
                requests, requests + len(modes) % 2, as_expected(planned, len(plan.chosen), requests + sum(kept))
            )
    return modes
