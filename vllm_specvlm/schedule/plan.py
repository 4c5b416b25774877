"""What the planner is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """What the next step is for."""

    PLAIN = "plain"
    TREES = "trees"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that may have a tree."""

    backlog: int
    """Rows the drafter has to compute before it can draft for the request."""
    remaining: float
    """Tokens the answer is expected to go on for."""
    typical: bool = True
    """Whether its tree tells what others will be worth; not if it asked for a small one, or has a grammar."""
    share: float = 1.0
    """What a node of its tree is worth, given its parent, for each that others' are (see `GrammarShare`)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which candidates get a tree, by their index; the tree's size is decided as it grows."""

    mode: Mode
    chosen: tuple[int, ...]
