"""What promises are worth is learned from what came of them, and what does not pay costs next to nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedule.plays import IDLE_SHAPE, as_expected, keep, numbered, planner, ready
from vllm_specvlm.schedule.plan import Mode


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_promises_that_are_not_kept_are_not_believed(share: float) -> None:
    """Something that no curve knows of makes steps with trees dearer than they should be."""
    planned = planner(IDLE_SHAPE)
    keep(planned, 16, 1.0, 40)
    modes = keep(planned, 16, share, 400)[100:]
    speculated = sum(mode is Mode.TREES for mode in modes) / len(modes)
    assert speculated < 0.3 if share < 1 else speculated > 0.95


def test_trust_comes_back() -> None:
    planned = planner(IDLE_SHAPE)
    keep(planned, 16, 1.0, 40)
    assert Mode.PLAIN in keep(planned, 16, 0.6, 60)[40:]
    assert keep(planned, 16, 1.0, 6000)[-20:].count(Mode.TREES) > 15


@pytest.mark.parametrize("requests", [1, 4, 16, 64])
@pytest.mark.parametrize("pays", [0.95, 0.8, 0.5])
def test_what_does_not_pay_costs_next_to_nothing(requests: int, pays: float) -> None:
    """Trees come to a share of plain decoding, whatever is promised for them."""
    planned = planner(IDLE_SHAPE)
    plain = planned.costs.plain.at(requests)
    tokens = seconds = 0.0
    for _ in range(4000):
        plan = planned.plan(requests, ready(requests))
        took, came = plain, requests
        if plan.mode is not Mode.PLAIN:
            trees = [(np.log([0.6, 0.3]).tolist(), [1, 1])] * len(plan.chosen)
            kept = planned.cut(numbered(trees))
            came = requests + len(plan.chosen)
            whole = plan.mode is Mode.TREES
            took = (
                came / requests * plain / pays
                if whole
                else as_expected(planned, len(plan.chosen), requests + sum(kept))
            )
        planned.achieved(requests, came, took)
        tokens, seconds = tokens + came, seconds + took
    assert tokens / seconds > 0.98 * requests / plain


def test_promises_that_are_exceeded_are_believed_too() -> None:
    """Some batch is just too large for what is promised, and not for what comes."""

    def speculates(share: float) -> list[bool]:
        planned = planner(IDLE_SHAPE)
        keep(planned, 16, share, 100)
        return [planned.plan(many, ready(many)).mode is Mode.TREES for many in range(16, 128)]

    assert sum(speculates(1.3)) > sum(speculates(1.0)) > 0


def test_promises_are_believed_by_the_size_of_the_batch() -> None:
    """What a few requests gain says little for many, where other things cost, and the less the more there are."""
    planned = planner(IDLE_SHAPE)
    keep(planned, 4, 1.3, 200)
    keep(planned, 64, 0.6, 60)
    assert planned._trust_at(4) > 1.1 > 1 > planned._trust_at(64)
    assert planned._trust_at(46) == planned._trust_at(64) == planned._trust_at(90), (
        "a full batch is often not quite full"
    )
    for known, far in ((4, 1), (64, 300)):  # two powers of two on
        assert planned._trust_at(far) - 1 == pytest.approx((planned._trust_at(known) - 1) / 4)


def test_distrust_that_is_borrowed_is_forgiven_where_it_came_from() -> None:
    """Or a batch that never has trees would wait for others of the size that had, which may never come."""
    planned = planner(IDLE_SHAPE)
    keep(planned, 4, 1.0, 200)
    keep(planned, 64, 0.6, 60)
    kept, before = dict(planned._trust), planned._trust_at(300)
    for _ in range(100):
        assert planned.plan(300, ready(300)).mode is not Mode.TREES
    assert before < planned._trust_at(300) < 1.0
    assert planned._trust.keys() == kept.keys(), "borrowed, and not kept"
