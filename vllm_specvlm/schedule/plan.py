"""What the planner is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

CAUGHT_UP = 16
"""Rows of backlog that a few steps leave behind: a request with more has to be read first."""


class Mode(Enum):
    """What the next step is for."""

    PLAIN = "plain"
    TREES = "trees"
    PROBE = "probe"


class Kind(NamedTuple):
    """Requests whose trees are worth about the same, as far as can be told before one was grown."""

    sampled: bool = False
    """It samples, instead of taking the likeliest token."""
    picture: bool = False
    """It shows a picture."""
    usual: bool = True
    """It did not ask for smaller trees than the engine's, and no grammar takes nodes out of them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that may have a tree."""

    request_id: str
    backlog: int
    """Rows the drafter has to compute before it can draft for the request."""
    remaining: float
    """Tokens the answer is expected to go on for."""
    kind: Kind

    @property
    def unread(self) -> int:
        """Rows to be read before it can be drafted for, 0 if it has caught up but for the last steps'."""
        return self.backlog if self.backlog > CAUGHT_UP else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Which candidates get a tree, by their index; the tree's size is decided as it grows."""

    mode: Mode
    chosen: tuple[int, ...]
