"""How long planning takes: `python tests/schedule/bench_planner.py` prints milliseconds per step by requests."""

from __future__ import annotations

import statistics
import time

import numpy as np

from vllm_specvlm.schedule.acceptance import AcceptanceModel, features
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Mode
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.tree.grow import Frontier, LevelProposal, grow_scored
from vllm_specvlm.tree.tree_shape import TreeShape

SHAPE = TreeShape(nodes=16, depth=12, width=4, top_k=4)
STEP = {1: 0.010, 8: 0.010, 64: 0.012, 512: 0.020}
DRAFT = {1: 0.001, 64: 0.002}


class Timed:
    """A drafter of random laws; `seconds` is its own time, which is not the planner's."""

    def __init__(self, model: AcceptanceModel | None) -> None:
        self.model, self.rng, self.seconds = model, np.random.default_rng(0), 0.0

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        started = time.perf_counter()
        rows = len(frontier.node)
        laws = np.sort(self.rng.dirichlet([0.3] * 10, size=rows), axis=1)[:, ::-1][:, :top_k]
        log_probs = np.log(np.maximum(laws, 1e-9))
        self.seconds += time.perf_counter() - started
        if self.model is None:
            return LevelProposal(np.arange(rows * top_k).reshape(rows, top_k), log_probs.astype(np.float32))
        flags = np.zeros(rows, dtype=bool)
        level = features(log_probs, int(frontier.depth[0]) + 1, flags, flags)
        return LevelProposal(np.arange(rows * top_k).reshape(rows, top_k), self.model.log_probs(level))


def step_ms(requests: int, planned: bool, repeats: int = 300) -> float:
    """Median milliseconds of a step's growing and planning, without the drafter."""
    planner = Planner(Costs(CostCurve(STEP), CostCurve(STEP), CostCurve(DRAFT), CostCurve(DRAFT)))
    drafter = Timed(AcceptanceModel() if planned else None)
    candidates = [Candidate(2, 50.0)] * requests
    taken = []
    for _ in range(repeats):
        drafter.seconds = 0.0
        started = time.perf_counter()
        if planned:
            planner.costs.plain.observe(requests, STEP[1])
            planner.costs.tree.observe(requests * 8, STEP[8])
            plan = planner.plan(requests, candidates)
            if plan.mode is Mode.PLAIN:
                continue
            roots = range(len(plan.chosen))
            grown = grow_scored(drafter, SHAPE, [16] * len(roots), roots, gate=planner)
            planner.cut([(g.log_probs, g.tree.depths) for g in grown.values()])
        else:
            grow_scored(drafter, SHAPE, [16] * requests, range(requests))
        taken.append(1e3 * (time.perf_counter() - started - drafter.seconds))
    return statistics.median(taken)


if __name__ == "__main__":
    for requests in (1, 4, 16, 64):
        planned, unplanned = step_ms(requests, True), step_ms(requests, False)
        print(f"{requests:3} requests: {planned:6.3f} ms with the planner, {unplanned:6.3f} ms growing alone")
