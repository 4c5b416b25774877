"""Global vectors of compressed pictures (`Compressed.global_vector`), one for each row of a feature head's pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_specvlm.engine.feature_context import FeatureContext
from vllm_specvlm.engine.feature_feed import placed


def of_slots(context: FeatureContext, slots: np.ndarray) -> torch.Tensor | None:
    """[slots, hidden]: of each slot the vector of the last picture before it, zeros where there is none."""
    extra = context.global_vectors(slots)
    if extra is None:
        return None
    after, vectors = extra
    return placed(vectors, np.flatnonzero(after), len(slots))


def of_nodes(contexts: Sequence[FeatureContext]) -> torch.Tensor | None:
    """[nodes, hidden]: of each node the vector of its request's last picture; None if no request has any."""
    latest = {key: _latest(context) for key, context in {id(context): context for context in contexts}.items()}
    rows = [latest[id(context)] for context in contexts]
    known = next((row for row in rows if row is not None), None)
    return None if known is None else together(rows, [known] * len(rows))


def together(parts: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """[rows, hidden] of several requests, zeros of the shape of `like` where one has none; None if none has any."""
    if all(part is None for part in parts):
        return None
    pairs = zip(parts, like, strict=True)
    return torch.cat([torch.zeros_like(shape) if part is None else part for part, shape in pairs])


def _latest(context: FeatureContext) -> torch.Tensor | None:
    """[1, hidden]."""
    extra = context.global_vectors(np.asarray([len(context.visible) - 1]))
    return None if extra is None or not extra[0].any() else extra[1]
