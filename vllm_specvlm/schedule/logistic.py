"""Logistic regression that follows what it is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LIMIT = 12.0
"""Bound of logits: nothing is more certain than 1 - 6e-6."""

_PRIOR_WEIGHT = 8.0
_STEPS = 4
_SETTLED = 0.03
"""A smaller step is the last one: the next would be about its square, far below what outcomes tell of a weight."""
_SAME = 1e-9
"""By so much for each outcome a fit may look worse without being it: ranks agree about steps that change nothing."""


class Logistic:
    """P(outcome | inputs), maximum a posteriori over the latest outcomes, refitted as they come."""

    def __init__(
        self,
        prior: Sequence[float],
        window: int,
        every: int = 64,
        least: Sequence[float] | None = None,
        most: Sequence[float] | None = None,
    ) -> None:
        """Weights to start from, the constant's last, and their bounds if any.

        `window` outcomes are remembered. Weights are refitted after a quarter of them, and at first after `every`.
        """
        self._prior = np.array(prior)
        self._prior_curvature = _PRIOR_WEIGHT * np.eye(len(prior))
        self._least = np.full(len(prior), -np.inf) if least is None else np.array(least)
        self._most = np.full(len(prior), np.inf) if most is None else np.array(most)
        self.weights = self._prior.copy()
        self._inputs = np.empty((window, len(prior)))
        self._outcomes = np.empty(window)
        self._every = every
        self._fitted = 0
        self.observed = 0
        """Outcomes seen so far."""

    def score(self, inputs: Floats) -> Floats:
        """Logits, [...] for inputs [..., n]; they may exceed LIMIT."""
        scores: Floats = inputs @ self.weights[:-1] + self.weights[-1]
        return scores

    def observe(self, inputs: Floats, outcomes: Sequence[bool]) -> None:
        """Inputs float64 [m, n], and how they came out."""
        window = len(self._outcomes)
        inputs, came = inputs[-window:], np.asarray(outcomes, dtype=np.float64)[-window:]
        at = (self.observed + np.arange(len(came))) % window
        self._inputs[at, :-1], self._inputs[at, -1], self._outcomes[at] = inputs, 1.0, came
        self.observed += len(came)
        if self.observed - self._fitted >= max(self._every, min(self.observed, window) // 4):
            self._fit()

    def _fit(self) -> None:
        """Newton's method; a few steps, from where the last fit ended.

        A step that makes things worse is halved until it does not: where nearly all outcomes are believed to be
        certain, there is hardly any curvature, and a whole step goes far beyond the minimum.
        """
        known = min(self.observed, len(self._outcomes))
        inputs, outcomes = self._inputs[:known], self._outcomes[:known]
        weights, logits, loss = self._after(self.weights, inputs, outcomes)
        for _ in range(_STEPS):
            probability = 1 / (1 + np.exp(-np.minimum(np.maximum(logits, -LIMIT), LIMIT)))
            gradient = inputs.T @ (outcomes - probability) - _PRIOR_WEIGHT * (weights - self._prior)
            curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
            curvature += self._prior_curvature
            step = np.linalg.solve(curvature, gradient)
            length, most = float(np.abs(step).max()), loss + _SAME * known
            tried, there, found = self._after(weights + step, inputs, outcomes)
            while not found <= most and length >= _SETTLED:  # nor is what is no number any better
                step, length = step / 2, length / 2
                tried, there, found = self._after(weights + step, inputs, outcomes)
            if not found <= most:
                break
            weights, logits, loss = tried, there, found
            if length < _SETTLED:
                break
        # Tensor-parallel ranks fit for themselves: last bits of their linear algebra must not part their plans.
        self.weights = np.round(weights, 6)
        self._fitted = self.observed

    def _after(self, weights: Floats, inputs: Floats, outcomes: Floats) -> tuple[Floats, Floats, float]:
        """These weights within their bounds, with the logits and the loss that they give."""
        weights = np.minimum(np.maximum(weights, self._least), self._most)
        logits = inputs @ weights
        return weights, logits, self._loss(weights, logits, outcomes)

    def _loss(self, weights: Floats, logits: Floats, outcomes: Floats) -> float:
        """Less the logarithm of the weights' probability, but for a constant."""
        # log(1 + exp(logits)): np.logaddexp is several times slower.
        unlikely = np.maximum(logits, 0.0) + np.log1p(np.exp(-np.abs(logits))) - outcomes * logits
        return float(unlikely.sum() + _PRIOR_WEIGHT / 2 * np.square(weights - self._prior).sum())
