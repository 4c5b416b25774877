"""What planned growth makes of a drafter's probabilities, and what it learns."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from tests.engine.test_mixed_drafter import SHAPE, TEXT, Toy, mixed
from tests.tree.random_tree import paths
from vllm_specvlm.engine.planned_growth import Growable, PlannedGrowth
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.forced_planner import ForcedPlanner
from vllm_specvlm.schedule.plan import Candidate
from vllm_specvlm.tree.accept import Accepted


def test_what_lookup_says_is_not_calibrated_again() -> None:
    """The drafter's own children are, and what becomes of lookup's teaches nothing about them."""
    planner = ForcedPlanner(Costs(*(CostCurve({1: 1e-3}) for _ in range(4))), 24)
    clock: Any = SimpleNamespace(passed=lambda rows, started, *, first: None)
    growth = PlannedGrowth(planner, clock)
    growth.acceptance._law.weights[-1] = -2.0
    drafter = mixed(Toy(0, knows=[7] * 8), TEXT)
    planner.plan(1, [Candidate(0, 9.0)])
    batch = [Growable("0", 24, 6, sampled=False, picture=False, left=99, bounded=False)]
    sent = growth.grow(drafter, batch, SHAPE)["0"]
    nodes = dict(zip(paths(sent), growth._sent["0"].features.tolist(), strict=True))
    assert math.isnan(nodes[(4,)][0]) and nodes[(7,)][0] < 3.0
    assert sent.tokens[0] == 4, "a third as it was learned, and of the drafter's half there is less left"
    growth.observe_accepted({"0": (sent, Accepted((), ()))})
    roots = [node for node, parent in enumerate(sent.parents) if parent < 0]
    assert growth.acceptance.observed == len([node for node in roots if sent.tokens[node] != 4])
