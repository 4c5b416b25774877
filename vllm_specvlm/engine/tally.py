"""What a worker did and how long it took, in plain counters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counters since the worker started.

    `seconds` by activity: `verify` is our share of the target's step (bending inputs, acceptance, commit; the forward
    pass and the choice of tokens from logits are not in it), `draft` all of drafting, of which `draft_model` the
    draft's forward passes and logits. So our own Python costs `verify + draft - draft_model`.
    """

    tree_steps: int = 0
    """Steps that verified at least one tree."""
    plain_steps: int = 0
    trees: int = 0
    nodes: int = 0
    accepted: int = 0
    """Nodes on accepted paths; acceptance length with the bonus token is `1 + accepted / trees`."""
    levels: int = 0
    drafter_failures: int = 0
    compressions: dict[str, int] = field(default_factory=dict)
    """Pictures compressed for a feature head or a draft VLM, by the primitive a gate chose (or the only one)."""
    plans: dict[str, int] = field(default_factory=lambda: {"plain": 0, "trees": 0, "probe": 0})
    """The planner's decisions by `schedule.planner.Mode`."""
    seconds: dict[str, float] = field(default_factory=lambda: {"verify": 0.0, "draft": 0.0, "draft_model": 0.0})

    @contextmanager
    def clock(self, activity: str) -> Iterator[None]:
        """Add the time spent inside to an activity."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - started

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
