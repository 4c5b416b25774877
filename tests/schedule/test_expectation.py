"""What a drafter is expected to give, by hand."""

from __future__ import annotations

import pytest

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.expectation import expect, rate
from vllm_specvlm.schedule.profile import Profile, ProfileKey
from vllm_specvlm.schedule.reading import Reading

KEY = ProfileKey("target@1", "draft@2", "float32", "eager", 1, "a CPU", 2, "0.32.0", "2.13.0", "0.1.0")


def profile(plain: float, level: float, overhead: float, row: float = 0.0) -> Profile:
    """Every pass of the target takes `plain` and `row` more for each row above one."""
    step = CostCurve({1: plain, 2: plain + row, 8192: plain + 8191 * row})
    draft = CostCurve({1: level, 8192: level})
    return Profile(KEY, Costs(step, step, draft, draft), overhead)


@pytest.mark.parametrize(("tokens", "depth", "found"), [(1.0, 5, 0.0), (6.0, 5, 1.0), (1.75, 2, 0.5), (9.0, 5, 1.0)])
def test_rate(tokens: float, depth: int, found: float) -> None:
    assert rate(tokens, depth) == pytest.approx(found, abs=1e-6)


def test_chains_are_as_long_as_pays() -> None:
    one = expect(profile(0.010, 0.004, 0.001), 0.5, 100)
    assert (one.depth, one.tokens) == (1, 1.5)
    assert one.speedup == pytest.approx(1.5 * 10 / (10 + 4 + 1))
    free = expect(profile(0.010, 1e-6, 0.0), 0.5, 100)
    assert free.depth == 8 and free.speedup == pytest.approx(2 - 0.5**8, rel=1e-2)
    dear = expect(profile(0.010, 1e-6, 0.0, row=0.004), 0.5, 100)
    assert dear.depth == 1, "rows of the target's pass cost something, too"


def test_what_context_adds_is_counted() -> None:
    """A thousand tokens make the target's passes half as long again, and leave the draft's as they are."""
    step = CostCurve({1: 0.010, 8192: 0.010}, reading=Reading(per_request=5e-6))
    draft = CostCurve({1: 0.005, 8192: 0.005})
    measured = Profile(KEY, Costs(step, step, draft, draft), 0.0)
    near, far = (expect(measured, 0.5, context) for context in (0, 1000))
    assert near.plain == pytest.approx(0.010) and far.plain == far.check == pytest.approx(0.015)
    assert far.speedup > near.speedup and measured.costs.plain.at(1) == pytest.approx(0.010)
