"""From what the draft believes to what the target accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEATURES = ("belief", "confidence", "depth", "rank", "sampled", "picture")
"""Of a proposed child: logit of its draft probability, logit of its best sibling's (how sure the draft is here, which
entropy says elsewhere), logarithm of its depth, whether it is not the best, whether its request samples, and whether
its request shows a picture."""

_WINDOW = 2048
_PRIOR_WEIGHT = 8.0
_LIMIT = 12.0
"""Bound of logits: nothing is more certain than 1 - 6e-6."""


def features(log_probs: Floats, depth: int, sampled: npt.NDArray[np.bool_], picture: npt.NDArray[np.bool_]) -> Floats:
    """The features of a level's proposals, float64 [rows, k, 6] for log-probabilities [rows, k], descending by row.

    `depth` is the children's, 1 below the root; `sampled` and `picture` are [rows].
    """
    rows, k = log_probs.shape
    made = np.empty((rows, k, len(FEATURES)))
    belief = _logit(log_probs)
    made[..., 0] = belief
    made[..., 1] = np.maximum(belief[:, :1], -_LIMIT)
    made[..., 2] = math.log(depth)
    made[..., 3] = np.arange(k) > 0
    made[..., 4] = sampled[:, None]
    made[..., 5] = picture[:, None]
    return made


class AcceptanceModel:
    """Probability that a child is accepted given that its parent is, by logistic regression, refitted as trees return.

    The prior says that the draft is right about itself. More belief never means less probability, nor a better rank,
    so a row's order stays; and as these are conditional probabilities, no node's path is likelier than its parent's.
    The features are those of C2T (arXiv 2502.13652, section 3) with the best sibling's probability for the entropy.
    """

    def __init__(self) -> None:
        """Believe the draft."""
        self._prior = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        self._weights = self._prior.copy()
        self._inputs = np.empty((_WINDOW, len(FEATURES) + 1))
        self._accepted = np.empty(_WINDOW)
        self._count = 0
        self._fitted = 0

    @property
    def observed(self) -> int:
        """Outcomes seen so far."""
        return self._count

    def log_probs(self, level: Floats) -> npt.NDArray[np.float32]:
        """Calibrated log-probabilities, [rows, k] for features [rows, k, 6]; -inf where there is no candidate."""
        score = level @ self._weights[:-1] + self._weights[-1]
        found = -np.logaddexp(0.0, -np.minimum(np.maximum(score, -_LIMIT), _LIMIT))
        # The order of a row is the drafter's; clipping must not turn equal scores round.
        found = np.minimum.accumulate(found, axis=1)
        found[level[..., 0] == -np.inf] = -np.inf
        return found.astype(np.float32)

    def observe(self, children: Floats, accepted: Sequence[bool]) -> None:
        """Children of accepted nodes (or of the root), float64 [n, 6], and which of them the target accepted."""
        for row, outcome in zip(children, accepted, strict=True):
            at = self._count % _WINDOW
            self._inputs[at, :-1] = row
            self._inputs[at, -1] = 1.0
            self._accepted[at] = outcome
            self._count += 1
        if self._count - self._fitted >= max(64, min(self._count, _WINDOW) // 4):
            self._fit()

    def _fit(self) -> None:
        """Maximum a posteriori by Newton's method; a few steps, from where the last fit ended."""
        known = min(self._count, _WINDOW)
        inputs, accepted = self._inputs[:known], self._accepted[:known]
        weights = self._weights.copy()
        for _ in range(4):
            probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -_LIMIT, _LIMIT)))
            gradient = inputs.T @ (accepted - probability) - _PRIOR_WEIGHT * (weights - self._prior)
            curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
            curvature[np.diag_indices_from(curvature)] += _PRIOR_WEIGHT
            weights += np.linalg.solve(curvature, gradient)
            weights[0] = max(weights[0], 0.05)
            weights[3] = min(weights[3], 0.0)
        if np.isfinite(weights).all():
            self._weights = weights
        self._fitted = self._count

    def as_dict(self) -> dict[str, float]:
        """The weights by feature, for people."""
        return {name: round(float(w), 4) for name, w in zip((*FEATURES, "constant"), self._weights, strict=True)}


def _logit(log_probs: Floats) -> Floats:
    """Bounded logit of probabilities given as logarithms; -inf stays."""
    found = log_probs - np.log(-np.expm1(np.minimum(log_probs, -1e-9)))
    found = np.minimum(np.maximum(found, -_LIMIT), _LIMIT)
    found[log_probs == -np.inf] = -np.inf
    return found
