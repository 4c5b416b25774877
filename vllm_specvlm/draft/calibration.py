"""How far a draft's logits may be trusted to be the target's, learned from the tokens that the target drew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_SHARPNESS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 16.0)
_TRUST = (1.0, 0.75, 0.5, 0.25, 0.0)
_FIRST_SHARPNESS = 0.7
_HEAD_START_TRUST = 3.0
_HEAD_START_SHARPNESS = 1.0
_MEMORY = 3000.0


@dataclass(frozen=True, slots=True)
class Belief:
    """P(token t wins the target's race) = softmax over t of sharpness * (draft logit_t + trust * noise_t).

    Logits are not divided by the temperature, the noise is multiplied by it: a Gumbel race of the law at temperature T
    is argmax(logit + T Gumbel). The belief follows if the target's logits are 1 / trust times the draft's plus
    independent Gumbel errors of scale 1 / (sharpness * trust). So a draft equal to its target has trust 1 and endless
    sharpness; with trust 0 the noise says nothing, and the likeliest token is the best guess: the draft is unsure where
    the target is sure.
    """

    sharpness: float
    trust: float


class Calibration:
    """The belief, among a few, that has so far predicted best what the target drew.

    Follows the leader: the belief with the least sum of -log P(drawn token), in which a loss weighs 1 / e after 3,000
    later ones. At first the noise counts in full (trust 1), until another trust is ahead by 3 nats, which takes
    some tens of tokens. Beliefs only rank candidates: no answer depends on them.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._beliefs = [Belief(sharpness, trust) for trust in _TRUST for sharpness in _SHARPNESS]
        self._sharpness = np.array([[belief.sharpness] for belief in self._beliefs], dtype=np.float32)
        self._trust = np.array([[belief.trust] for belief in self._beliefs], dtype=np.float32)
        self._losses = np.array(
            [
                _HEAD_START_TRUST * (belief.trust < 1.0)
                + _HEAD_START_SHARPNESS * (belief.sharpness != _FIRST_SHARPNESS)
                for belief in self._beliefs
            ]
        )

    @property
    def belief(self) -> Belief:
        """The leader."""
        return self._beliefs[int(self._losses.argmin())]

    def learn(self, logits: Floats, noise: Floats, drawn: int) -> None:
        """The target drew candidate number `drawn`. Logits that are no numbers teach nothing.

        Args:
            logits: float32 [candidates] of the draft; -inf for those that top-k or top-p exclude.
            noise: float32 [candidates], T times the Gumbel noise.
            drawn: index of a candidate that is not excluded.
        """
        with np.errstate(invalid="ignore"):
            scores = self._sharpness * (logits - logits.max() + self._trust * noise)
        top = scores.max(axis=1)
        losses = top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - scores[:, drawn]
        if np.isfinite(losses).all():
            self._losses = self._losses * np.exp(-1.0 / _MEMORY) + losses
