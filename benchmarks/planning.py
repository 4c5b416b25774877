"""What planning costs: milliseconds per step of the planner's calls, of calibrating acceptance and of what is learned
from the trees that come back, without a drafter.

Trees are grown from made-up laws of two drafts, one that hesitates and one that is nearly always sure, so that trees
are flat or deep. Needs no engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import write_report

from vllm_specvlm.schedule.acceptance import FEATURES, AcceptanceModel, features
from vllm_specvlm.schedule.answer_lengths import AnswerLengths
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.tree.grow import Frontier, LevelProposal, grow_scored
from vllm_specvlm.tree.tree_shape import TreeShape

SHAPE = TreeShape(nodes=16, depth=12, width=4, top_k=4)
STEP = {1: 0.010, 8: 0.010, 64: 0.012, 512: 0.020}
DRAFT = {1: 0.001, 64: 0.002}
DRAFTS = {"hesitant": 0.3, "sure": 0.03}
"""Concentrations of the Dirichlet laws they propose from."""


class Stopwatch:
    """Drafter and gate of a growing tree: `seconds` is what planner and calibration spend of it."""

    def __init__(self, planner: Planner, concentration: float) -> None:
        self.planner = planner
        self.model = AcceptanceModel()
        self.rng = np.random.default_rng(0)
        self.concentration = concentration
        self.seconds = 0.0
        self.levels = 0
        self.features: list[npt.NDArray[np.float64]] = []

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """Tokens from a random law, with calibrated log-probabilities as the engine makes them."""
        rows = len(frontier.node)
        laws = np.sort(self.rng.dirichlet([self.concentration] * 10, size=rows), axis=1)[:, ::-1][:, :top_k]
        log_probs = np.log(np.maximum(laws, 1e-9))
        self.levels += 1
        flags = np.zeros(rows, dtype=bool)
        started = time.perf_counter()
        level = features(log_probs, int(frontier.depth[0]) + 1, flags, flags)
        calibrated = self.model.log_probs(level)
        self.features.append(level.reshape(-1, len(FEATURES)))
        self.seconds += time.perf_counter() - started
        return LevelProposal(np.arange(rows * top_k).reshape(rows, top_k), calibrated)

    def admit(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """The planner's answer."""
        started = time.perf_counter()
        flags = self.planner.admit(depth, scores)
        self.seconds += time.perf_counter() - started
        return flags

    def admit_free(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Never asked: nothing is known without a pass here."""
        return [False] * len(scores)


def planned_ms(requests: int, concentration: float, repeats: int) -> tuple[float, float]:
    """Median milliseconds that a step with trees spends in planner and calibration; mean levels of its trees."""
    planner = Planner(Costs(CostCurve(STEP), CostCurve(STEP), CostCurve(DRAFT), CostCurve(DRAFT)))
    watch = Stopwatch(planner, concentration)
    lengths = AnswerLengths()
    for tokens in watch.rng.integers(1, 256, 256).tolist():
        lengths.observe(tokens)
    taken, levels = [], []
    for step in range(repeats):
        watch.seconds, watch.levels, watch.features = 0.0, 0, []
        started = time.perf_counter()
        candidates = [Candidate(str(i), 2, lengths.remaining((step + i) % 200, 400), Kind()) for i in range(requests)]
        planner.achieved(requests, 4.0 * requests, STEP[8] + DRAFT[1])
        planner.costs.attend(requests, 500.0)
        planner.costs.plain.observe(requests, STEP[1])
        planner.costs.tree.observe(requests * 8, STEP[8])
        plan = planner.plan(requests, candidates)
        watch.seconds += time.perf_counter() - started
        if plan.mode is Mode.PLAIN:
            continue
        roots = len(plan.chosen)
        grown = grow_scored(watch, SHAPE, [SHAPE.nodes] * roots, range(roots), gate=watch)
        started = time.perf_counter()
        kept = planner.cut({i: (g.log_probs, g.passes) for i, g in grown.items()})
        # As if the likeliest nodes had been on the target's path, down to one that was not.
        tried = [g.origins[: min(count, 8)] for count, g in zip(kept, grown.values(), strict=True)]
        outcomes = [i < len(origins) - 1 for origins in tried for i in range(len(origins))]
        if outcomes:
            watch.model.observe(np.concatenate(watch.features)[[i for origins in tried for i in origins]], outcomes)
        watch.seconds += time.perf_counter() - started
        if plan.mode is Mode.TREES:
            taken.append(1e3 * watch.seconds)
            levels.append(watch.levels)
    return statistics.median(taken), statistics.mean(levels)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    rows = []
    for requests in (1, 4, 16, 64):
        for draft, concentration in DRAFTS.items():
            ms, levels = planned_ms(requests, concentration, 60 if arguments.quick else 600)
            rows.append({"requests": requests, "draft": draft, "levels": round(levels, 1), "ms": round(ms, 3)})
            print(f"{requests:3} requests, {draft:8} draft, {levels:4.1f} levels: {ms:6.3f} ms", flush=True)
    if arguments.json:
        write_report(arguments.json, "planning", argv, {"what": "planner and calibration alone"}, rows)


if __name__ == "__main__":
    main()
