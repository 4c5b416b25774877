from __future__ import annotations

import numpy as np
import pytest

from vllm_specvlm.draft.calibration import Belief, Calibration


def play(error: float, sharpen: float = 1.0, count: int = 2000, seed: int = 0) -> tuple[Calibration, dict[str, float]]:
    """A draft whose logits are the target's, divided by `sharpen`, plus Gaussian errors: how often each rule is right.

    64 candidates at temperature 1.
    """
    rng = np.random.default_rng(seed)
    calibration = Calibration()
    right = {"blind": 0, "coupled": 0, "learned": 0}
    for _ in range(count):
        target = 3 * rng.normal(size=64)
        logits = ((target + error * rng.normal(size=64)) / sharpen).astype(np.float32)
        noise = rng.gumbel(size=64).astype(np.float32)
        drawn = int((target + noise).argmax())
        for rule, trust in (("blind", 0.0), ("coupled", 1.0), ("learned", calibration.belief.trust)):
            right[rule] += int((logits + trust * noise).argmax()) == drawn
        calibration.learn(logits, noise, drawn)
    return calibration, {rule: hits / count for rule, hits in right.items()}


def test_a_draft_equal_to_its_target_is_trusted_from_the_start_and_for_ever() -> None:
    calibration, right = play(error=0.0)
    assert right["learned"] == 1.0
    assert calibration.belief == Belief(16.0, 1.0)


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
def test_a_good_draft_gains_from_the_noise(error: float) -> None:
    calibration, right = play(error)
    assert calibration.belief.trust == 1.0
    assert right["learned"] > right["blind"] + 0.1


def test_worse_drafts_are_trusted_less_sharply() -> None:
    sharpness = [play(error)[0].belief.sharpness for error in (0.3, 1.0, 3.0)]
    assert sharpness == sorted(sharpness, reverse=True) and len(set(sharpness)) == 3


@pytest.mark.parametrize("sharpen", [2.0, 4.0])
def test_a_draft_flatter_than_its_target_gives_the_noise_less_weight(sharpen: float) -> None:
    calibration, right = play(error=1.0, sharpen=sharpen)
    assert calibration.belief.trust == pytest.approx(1 / sharpen, abs=0.25)
    assert right["learned"] > right["coupled"] + 0.02


def test_noise_that_says_nothing_is_given_up() -> None:
    """The noise of other positions, as a control."""
    rng = np.random.default_rng(1)
    calibration = Calibration()
    for _ in range(500):
        logits, noise = (2 * rng.normal(size=64)).astype(np.float32), rng.gumbel(size=64).astype(np.float32)
        calibration.learn(logits, noise, int((logits + rng.gumbel(size=64)).argmax()))
    assert calibration.belief.trust == 0.0


def test_it_learns_anew() -> None:
    rng = np.random.default_rng(2)
    calibration = Calibration()
    for part, expected in enumerate((1.0, 0.0, 1.0)):
        for _ in range(9000):
            logits, noise = (2 * rng.normal(size=16)).astype(np.float32), rng.gumbel(size=16).astype(np.float32)
            other = rng.gumbel(size=16) if part == 1 else noise
            calibration.learn(logits, noise, int((logits + other + 0.3 * rng.normal(size=16)).argmax()))
        assert calibration.belief.trust == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_teach_nothing(bad: float) -> None:
    calibration = Calibration()
    before = calibration._losses.copy()
    calibration.learn(np.array([bad, 1.0, 0.5], dtype=np.float32), np.ones(3, dtype=np.float32), 1)
    assert np.array_equal(calibration._losses, before)


def test_excluded_candidates_and_great_logits_do_no_harm() -> None:
    calibration = Calibration()
    logits = np.array([3000.0, 2999.0, -5000.0, -np.inf, -np.inf], dtype=np.float32)
    for drawn in (0, 0, 1, 2, 0):
        calibration.learn(logits, np.array([0.1, 1.0, -1.0, 20.0, 0.0], dtype=np.float32), drawn)
        assert np.isfinite(calibration._losses).all()
