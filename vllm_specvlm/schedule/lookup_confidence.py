"""How probably text goes on as it did before, beside a drafter that has an opinion of its own, or has none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vllm_specvlm.schedule.logistic import LIMIT, Logistic

_WINDOW = 512
_FORGETS = 0.9


def evidence(share: float, length: int) -> float:
    """Logit of the probability that lookup by itself gives: its share of the places, times L / (L + 1)."""
    return _logit(share * length / (length + 1))


@dataclass(slots=True)
class Habit:
    """How often lookup was right in one request lately; a text that repeated itself does it again."""

    right: float = 0.0
    asked: float = 0.0

    @property
    def logit(self) -> float:
        """0 at first."""
        return _logit((self.right + 1.0) / (self.asked + 2.0))

    def learn(self, right: bool) -> None:
        """One more outcome."""
        self.right = _FORGETS * self.right + right
        self.asked = _FORGETS * self.asked + 1.0


class LookupConfidence:
    """Learned from what followed, also where the planner sent no tree.

    With a drafter's opinion: logit = a * (logit of the drafter's probability of that token) + b * evidence + c * habit
    + d, so that agreement counts and so does contradiction. Without: the same less the opinion, with weights of its
    own. At first a is a half, both b are 1 and all else 0: lookup is believed, and a drafter that says otherwise half
    as much.
    """

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._beside = Logistic((0.5, 1.0, 0.0, 0.0), _WINDOW, every=32)
        self._alone = Logistic((1.0, 0.0, 0.0), _WINDOW, every=32)

    def probability(self, opinion: float | None, evidence: float, habit: float) -> float:
        """Of a token to which the drafter gives probability `opinion`, None if it was not asked; see `Habit.logit`."""
        if opinion is None:
            return _probability(self._alone, (evidence, habit))
        return _probability(self._beside, (_logit(opinion), evidence, habit))

    def learn(self, opinion: float | None, evidence: float, habit: float, right: bool) -> None:
        """The best continuation of a node on the target's path was right, or not; `opinion` None: nobody was asked."""
        if opinion is not None:
            self._beside.observe(np.array([[_logit(opinion), evidence, habit]]), [right])
        self._alone.observe(np.array([[evidence, habit]]), [right])


def _logit(probability: float) -> float:
    bounded = min(max(probability, 1e-9), 1.0 - 1e-9)
    return min(max(math.log(bounded / (1.0 - bounded)), -LIMIT), LIMIT)


def _probability(law: Logistic, inputs: tuple[float, ...]) -> float:
    score = sum(w * x for w, x in zip(law.weights, (*inputs, 1.0), strict=True))
    return 1.0 / (1.0 + math.exp(-min(max(score, -LIMIT), LIMIT)))
