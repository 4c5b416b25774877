"""Logistic regression: it finds what is there, and stays near it where a draft is nearly always sure."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_specvlm.schedule.logistic import Logistic


def test_it_finds_the_weights_that_outcomes_were_drawn_from() -> None:
    chance = np.random.default_rng(0)
    model = Logistic([0.0, 0.0], window=4096)
    for _ in range(64):
        inputs = chance.normal(size=(64, 1))
        model.observe(inputs, (chance.random(64) < 1 / (1 + np.exp(-(1.5 * inputs[:, 0] - 0.5)))).tolist())
    assert model.weights == pytest.approx([1.5, -0.5], abs=0.15)


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize("sure", [4.0, 7.0])
def test_a_draft_that_is_too_sure_of_one_kind_is_found_out(share: float, sure: float) -> None:
    """Hardly any curvature: whole steps of Newton's method would go far beyond the minimum, and stay there."""
    chance = np.random.default_rng(1)
    model = Logistic([1.0, 0.0, 0.0], window=2048)
    for _ in range(60):
        other = chance.random(52) < share
        came = np.where(other, chance.random(52) < 0.5, chance.random(52) < 0.9991)
        model.observe(np.stack([np.full(52, sure), other], axis=1), came.tolist())
    usual, unusual = 1 / (1 + np.exp(-model.score(np.array([[sure, 0.0], [sure, 1.0]]))))
    assert np.abs(model.weights).max() < 20.0
    assert usual > 0.97 and unusual == pytest.approx(0.5, abs=0.15)
