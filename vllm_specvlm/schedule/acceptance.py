"""From what the draft believes to what the target accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vllm_specvlm.schedule.logistic import LIMIT, Floats, Logistic

FEATURES = ("belief", "confidence", "depth", "rank", "sampled", "picture")
"""Of a proposed child: logit of its draft probability, logit of its best sibling's (how sure the draft is here, which
entropy says elsewhere), logarithm of its depth, whether it is not the best, whether its request samples, and whether
its request shows a picture."""

_WINDOW = 2048


def features(log_probs: Floats, depth: int, sampled: npt.NDArray[np.bool_], picture: npt.NDArray[np.bool_]) -> Floats:
    """The features of a level's proposals, float64 [rows, k, 6] for log-probabilities [rows, k], descending by row.

    `depth` is the children's, 1 below the root; `sampled` and `picture` are [rows].
    """
    rows, k = log_probs.shape
    made = np.empty((rows, k, len(FEATURES)))
    belief = _logit(log_probs)
    made[..., 0] = belief
    made[..., 1] = np.maximum(belief[:, :1], -LIMIT)
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
        least = [-np.inf] * (len(FEATURES) + 1)
        most = [np.inf] * (len(FEATURES) + 1)
        least[FEATURES.index("belief")] = 0.05
        most[FEATURES.index("rank")] = 0.0
        self._law = Logistic((1.0, *(0.0,) * len(FEATURES)), _WINDOW, least=least, most=most)

    @property
    def observed(self) -> int:
        """Outcomes seen so far."""
        return self._law.observed

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the features, and the constant last."""
        return tuple(self._law.weights.tolist())

    def log_probs(self, level: Floats) -> npt.NDArray[np.float32]:
        """Calibrated log-probabilities, [rows, k] for features [rows, k, 6]; -inf where there is no candidate."""
        found = -np.logaddexp(0.0, -np.minimum(np.maximum(self._law.score(level), -LIMIT), LIMIT))
        # The order of a row is the drafter's; clipping must not turn equal scores round.
        found = np.minimum.accumulate(found, axis=1)
        found[level[..., 0] == -np.inf] = -np.inf
        return found.astype(np.float32)

    def observe(self, children: Floats, accepted: Sequence[bool]) -> None:
        """Children of accepted nodes (or of the root), float64 [n, 6], and which of them the target accepted."""
        self._law.observe(children, accepted)

    def as_dict(self) -> dict[str, float]:
        """The weights by feature, for people."""
        return {name: round(float(w), 4) for name, w in zip((*FEATURES, "constant"), self.weights, strict=True)}


def _logit(log_probs: Floats) -> Floats:
    """Bounded logit of probabilities given as logarithms; -inf stays."""
    found = log_probs - np.log(-np.expm1(np.minimum(log_probs, -1e-9)))
    found = np.minimum(np.maximum(found, -LIMIT), LIMIT)
    found[log_probs == -np.inf] = -np.inf
    return found
