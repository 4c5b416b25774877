"""Levels decided before the first one is drafted, for drafters whose passes are queued with nobody looking."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule.plays import IDLE_SHAPE, READY, as_expected, planner, play, ready
from vllm_specvlm.schedule.plan import Mode
from vllm_specvlm.schedule.planner import Planner


@pytest.mark.parametrize("requests", [1, 3, 32])
@pytest.mark.parametrize("shape", [IDLE_SHAPE, {1: 0.010, 64: 0.015}], ids=["idle", "dearer rows"])
def test_levels_laid_out_beforehand_are_those_the_gate_admits(requests: int, shape: dict[int, float]) -> None:
    """For trees like the remembered ones: as deep, and as wide to within one node a tree."""
    planned = planner(shape)
    play(planned, requests, 0.8, 80)
    # One of them may be a plain step, to compare with.
    assert any(planned.plan(requests, ready(requests)).mode is Mode.TREES for _ in range(2))
    widths = planned.layout(requests, 9, 4)
    assert widths is not None and widths[0] == 1
    for level in range(1, 9):
        # `play` has one node a tree and level with children, and another that was never worth any.
        scores = [np.log(0.8) * level, np.log(0.8) * (level - 1) + np.log(0.8 / 9)] * requests
        admitted = planned.admit(level, scores) if level <= 4 else []
        assert len(widths) > level or not any(admitted), (level, widths)
        if len(widths) > level:
            assert 0 <= widths[level] - sum(admitted) / requests < 1, (level, widths)


def test_a_layout_learns_how_deep_to_go() -> None:
    """From probes of one level on, trees that are laid out reach the depth that pays, and come back from it."""
    planned = planner(IDLE_SHAPE)
    play(planned, 1, 0.1, 30)
    depths = {share: [laid_out(planned, share) for _ in range(300)] for share in (0.9, 0.3)}
    deep, shallow = depths[0.9][-20:], depths[0.3][-20:]
    assert max(deep) >= 6 and min(d for d in deep if d) >= 5
    assert max(shallow) <= 3


def laid_out(planned: Planner, accepted: float) -> int:
    """One step of one request, whose levels are decided beforehand where the planner can; how many there were."""
    if planned.plan(1, [READY]).mode is Mode.PLAIN:
        planned.achieved(1, 1, planned.costs.plain.at(1))
        planned.costs.plain.observe(1, planned.costs.plain.at(1))
        return 0
    widths = planned.layout(1, 8, 4)
    depth = 1
    while depth < 8:
        score = np.log(accepted) * depth
        if widths is None:
            if not planned.admit(depth, [score])[0]:
                break
        elif depth == len(widths):
            break
        else:
            planned.passed(depth, widths[depth], float(np.exp(score)))
        depth += 1
    scores = [np.log(accepted) * d for d in range(1, depth + 1)]
    (kept,) = planned.cut({0: (scores, list(range(1, depth + 1)))})
    planned.achieved(1, 1 + float(np.exp(scores[:kept]).sum()), as_expected(planned, 1, 1 + kept))
    return depth


def test_a_probe_is_not_laid_out() -> None:
    planned = planner(IDLE_SHAPE)
    assert planned.plan(1, [READY]).mode is Mode.PROBE
    assert planned.layout(1, 6, 4) is None


def test_a_level_laid_out_in_vain_breaks_nothing() -> None:
    """On a device a level is drafted whether or not the tree had a node for it."""
    planned = planner(IDLE_SHAPE)
    play(planned, 1, 0.9, 40)
    assert any(planned.plan(1, [READY]).mode is Mode.TREES for _ in range(2))
    planned.passed(1, 1, 0.0)
    assert planned.cut({0: ([np.log(0.9)], [1])}) == [1]
