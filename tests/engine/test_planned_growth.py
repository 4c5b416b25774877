"""What planned growth makes of a drafter's probabilities, and what it learns."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from pytest import approx

from tests.engine.test_mixed_drafter import AGAIN, SHAPE, TEXT, Toy, mixed
from tests.tree.random_tree import paths
from vllm_specvlm.engine.planned_growth import Growable, PlannedGrowth
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.forced_planner import ForcedPlanner
from vllm_specvlm.schedule.plan import Candidate, Kind
from vllm_specvlm.tree.accept import Accepted
from vllm_specvlm.tree.token_tree import TokenTree


def test_what_lookup_says_is_not_calibrated_again() -> None:
    """The drafter's own children are, and what becomes of lookup's teaches nothing about them."""
    planner = ForcedPlanner(Costs(*(CostCurve({1: 1e-3}) for _ in range(4))), 24)
    clock: Any = SimpleNamespace(passed=lambda rows, started, *, first: None)
    growth = PlannedGrowth(planner, clock)
    growth.acceptance._law.weights[-1] = -2.0
    drafter = mixed(Toy(0, knows=[7] * 8), TEXT)
    planner.plan(1, [Candidate("0", 0, 9.0, Kind())])
    batch = [Growable("0", 24, 6, sampled=False, picture=False, left=99, bounded=False)]
    sent = growth.grow(drafter, batch, SHAPE)["0"]
    nodes = dict(zip(paths(sent), growth._sent["0"].features.tolist(), strict=True))
    assert math.isnan(nodes[(4,)][0]) and nodes[(7,)][0] < 3.0
    assert sent.tokens[0] == 4, "a third as it was learned, and of the drafter's half there is less left"
    growth.observe_accepted({"0": (sent, Accepted((), ()))})
    roots = [node for node, parent in enumerate(sent.parents) if parent < 0]
    assert growth.acceptance.observed == len([node for node in roots if sent.tokens[node] != 4])


def grown(grammar: bool, growth: PlannedGrowth, drafter: Toy) -> TokenTree:
    """A tree of one request."""
    batch = [Growable("0", 8, 4, sampled=False, picture=False, left=99, bounded=False, grammar=grammar)]
    growth.observe_step(batch)
    growth.planner.plan(1, [Candidate("0", 0, 9.0, Kind())])
    return growth.grow(drafter, batch, SHAPE)["0"]


def growth_of_eight() -> PlannedGrowth:
    clock: Any = SimpleNamespace(passed=lambda rows, started, *, first: None)
    return PlannedGrowth(ForcedPlanner(Costs(*(CostCurve({1: 1e-3}) for _ in range(4))), 8), clock)


def test_what_a_grammar_forbids_is_learned_for_its_request_alone() -> None:
    growth, drafter = growth_of_eight(), Toy(0, knows=[7] * 8)
    weights = growth.acceptance.weights
    first = grown(True, growth, drafter)
    before = growth._sent["0"].features
    for _ in range(3):
        grown(True, growth, drafter)  # nobody has heard of the tree before: nothing was left of it
    assert growth.share("0") < 0.6 and growth.share("1") == 1.0
    assert growth.acceptance.observed == 0 and growth.acceptance.weights == weights
    sent = grown(True, growth, drafter)
    growth.observe_accepted({"0": (sent.prefix(2), Accepted((), ()))})
    assert growth.acceptance.observed == 0 and growth._sent == {}
    assert len(first) == len(before), "a tree was sent whole"
    growth.forget("0")
    assert growth.share("0") == 1.0


def test_a_grammar_lowers_each_level_by_its_share(monkeypatch: Any) -> None:
    """By the formula: log-probabilities of nodes are those of the model, and the share's logarithm for each level."""
    growth, drafter = growth_of_eight(), Toy(0, knows=[7] * 8)
    found = []
    stock = growth.planner.cut

    def cut(trees: Any) -> Any:
        found.append(trees[0])
        return stock(trees)

    monkeypatch.setattr(growth.planner, "cut", cut)
    grown(False, growth, drafter)
    monkeypatch.setattr(growth, "share", lambda request_id: 0.5)
    monkeypatch.setattr(growth.planner, "admit", lambda depth, scores: [True] * len(scores))
    grown(True, growth, drafter)
    (free, depths), (low, levels) = found
    assert max(free) - max(low) == approx(math.log(2), abs=1e-5)
    chain = {depth: max(p for p, d in zip(low, levels, strict=True) if d == depth) for depth in set(levels)}
    known = {depth: max(p for p, d in zip(free, depths, strict=True) if d == depth) for depth in set(depths)}
    for depth in set(chain) & set(known):
        assert known[depth] - chain[depth] == approx(depth * math.log(2), abs=1e-5)
    assert len(set(chain) & set(known)) > 1


def test_what_a_grammar_dictates_is_neither_learned_nor_achieved() -> None:
    growth, drafter = growth_of_eight(), Toy(0, knows=[7] * 8)
    grown(True, growth, drafter)
    verified = TokenTree.chain([90, 91, 92])
    growth.observe_accepted({"0": (verified, Accepted((0, 1, 2), ()))})
    assert growth.dictated == 3 and growth.acceptance.observed == 0
    assert growth.share("0") < 1.0, "of what was drafted nothing came"
    growth.observe_step([])
    assert growth.dictated == 0


def test_a_pass_that_did_not_run_has_no_time() -> None:
    """Of two requests one needs no drafter: the first pass has the other's row, and without the other there is none."""
    passes: list[tuple[int, bool]] = []
    clock: Any = SimpleNamespace(passed=lambda rows, started, *, first: passes.append((rows, first)))
    costs = Costs(*(CostCurve({1: 1e-3}) for _ in range(4)))
    growth = PlannedGrowth(ForcedPlanner(costs, 12), clock)
    toy = Toy(0, knows=[7] * 8)
    drafter = mixed(toy, AGAIN, [1, 2, 3], right=0.7)
    both = [Growable(name, 12, 8, sampled=False, picture=False, left=99, bounded=False) for name in ("0", "1")]
    growth.planner.plan(1, [Candidate("0", 0, 9.0, Kind())])
    sent = growth.grow(drafter, both[:1], SHAPE)
    assert passes == [] and tuple(range(120, 126)) in paths(sent["0"])
    growth.planner.plan(2, [Candidate(name, 0, 9.0, Kind()) for name in ("0", "1")])
    growth.grow(drafter, both, SHAPE)
    assert passes[0] == (1, True) and len(passes) == len(toy.asked)


def test_nothing_is_sent_below_a_token_that_ends() -> None:
    growth, drafter = growth_of_eight(), mixed(Toy(3), AGAIN, right=0.7)
    growth.planner.plan(1, [Candidate("0", 0, 9.0, Kind())])
    batch = [Growable("0", 8, 8, False, False, 99, False, ends=frozenset({122}))]
    sent = growth.grow(drafter, batch, SHAPE)["0"]
    assert (120, 121, 122) in paths(sent) and all(122 not in path[:-1] for path in paths(sent))
