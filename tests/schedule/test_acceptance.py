from __future__ import annotations

import numpy as np
import pytest

from vllm_specvlm.schedule.acceptance import AcceptanceModel, features

RNG = np.random.default_rng(0)


def proposals(rows: int, k: int = 4) -> np.ndarray:
    laws = np.sort(RNG.dirichlet([0.4] * 20, size=rows), axis=1)[:, ::-1][:, :k]
    return np.log(np.maximum(laws, 1e-9))


def level(log_probs: np.ndarray, depth: int = 1, sampled: bool = False) -> np.ndarray:
    rows = len(log_probs)
    return features(log_probs, depth, np.full(rows, sampled), np.zeros(rows, dtype=bool))


def teach(model: AcceptanceModel, truth, rows: int = 3000) -> None:
    """Outcomes drawn with probability `truth(draft probability)`."""
    for log_probs in proposals(rows):
        made = level(log_probs[None])[0]
        model.observe(made, [RNG.random() < truth(p) for p in np.exp(log_probs)])


def test_the_draft_is_believed_at_first() -> None:
    log_probs = proposals(50)
    assert np.exp(AcceptanceModel().log_probs(level(log_probs))) == pytest.approx(np.exp(log_probs), abs=1e-4)


def test_an_overconfident_draft_is_found_out() -> None:
    model = AcceptanceModel()
    teach(model, lambda p: p / 2)
    log_probs = proposals(400)
    error = np.exp(model.log_probs(level(log_probs))) - np.exp(log_probs) / 2
    assert abs(error.mean()) < 0.02
    assert np.abs(error).mean() < 0.05


def test_control_without_teaching_the_error_is_large() -> None:
    log_probs = proposals(400)
    error = np.exp(AcceptanceModel().log_probs(level(log_probs))) - np.exp(log_probs) / 2
    assert np.abs(error).mean() > 0.05


def test_order_is_kept_whatever_was_learned() -> None:
    model = AcceptanceModel()
    teach(model, lambda p: 0.9 - 0.8 * p)  # the less sure, the better: nothing a drafter should get away with
    log_probs = proposals(300)
    found = model.log_probs(level(log_probs))
    assert (np.diff(found, axis=1) <= 0).all()
    assert (found <= 0).all()


def test_requests_that_sample_are_told_apart() -> None:
    model = AcceptanceModel()
    for _ in range(1500):
        log_probs = proposals(1)
        for sampled, share in ((False, 1.0), (True, 0.4)):
            made = level(log_probs, sampled=sampled)[0]
            model.observe(made, list(RNG.random(4) < share * np.exp(log_probs[0])))
    log_probs = np.log(np.array([[0.6, 0.2, 0.1, 0.05]]))
    greedy, sampled = (np.exp(model.log_probs(level(log_probs, sampled=s)))[0, 0] for s in (False, True))
    assert greedy - sampled > 0.15


def test_no_candidate_stays_none() -> None:
    log_probs = np.array([[-0.1, -np.inf], [-np.inf, -np.inf]])
    found = AcceptanceModel().log_probs(level(log_probs))
    assert np.isfinite(found[0, 0]) and np.isneginf(found[0, 1]) and np.isneginf(found[1]).all()


def test_certainty_is_bounded() -> None:
    found = AcceptanceModel().log_probs(level(np.zeros((1, 2))))
    assert np.isfinite(found).all() and (found < 0).all()
