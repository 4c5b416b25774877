"""The acceptance model's probabilities, computed where the draft's are."""

from __future__ import annotations

import math

import numpy as np
import torch

from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.schedule.acceptance import FEATURES, AcceptanceModel
from vllm_specvlm.schedule.logistic import LIMIT


class AcceptanceOnDevice:
    """`AcceptanceModel.log_probs` of `features`, for levels of a growth that the host does not follow.

    The same float64 formula; last bits of the device's exponentials and logarithms may differ from the host's.
    """

    def __init__(
        self,
        model: AcceptanceModel,
        sampled: np.ndarray,
        picture: np.ndarray,
        device: torch.device,
        log_share: np.ndarray | None = None,
    ) -> None:
        """`sampled` and `picture`: bool [R], of the trees; `log_share` [R] of their grammars (see `GrammarShare`)."""
        weights = dict(zip((*FEATURES, "constant"), model.weights, strict=True))
        self._weights = weights
        of_request = weights["constant"] + weights["sampled"] * sampled + weights["picture"] * picture
        self._of_request = upload(np.asarray(of_request, dtype=np.float64), device)
        shares = np.zeros(len(sampled)) if log_share is None else log_share
        self._log_share = upload(np.asarray(shares, dtype=np.float64), device)

    def __call__(self, log_probs: torch.Tensor, depth: int) -> torch.Tensor:
        """float32 [R * w, k] of log-probabilities [R * w, k], descending along a row; children are `depth` deep."""
        weights, known = self._weights, log_probs > -torch.inf
        exact = log_probs.double()
        belief = (exact - (-torch.expm1(exact.clamp(max=-1e-9))).log()).clamp(-LIMIT, LIMIT)
        score = weights["belief"] * belief + weights["confidence"] * belief[:, :1]
        score[:, 1:] += weights["rank"]
        lines = len(self._of_request)
        score = (
            score.view(lines, -1, score.shape[1])
            + (self._of_request + weights["depth"] * math.log(depth))[:, None, None]
        )
        score = score.view(log_probs.shape).clamp(-LIMIT, LIMIT)
        found = -torch.logaddexp(torch.zeros_like(score), -score)
        # The order of a row is the drafter's; clipping must not turn equal scores round.
        found = found.cummin(dim=1).values
        found = (found.view(lines, -1, score.shape[1]) + self._log_share[:, None, None]).view(log_probs.shape)
        return torch.where(known, found, -torch.inf).float()
