"""What every drafter can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vllm_specvlm.tree.grow import Frontier, LevelProposal


@dataclass(frozen=True, slots=True)
class Opening:
    """What `Drafter.open` did."""

    rows: int
    """Rows it computed, the roots included."""
    behind: frozenset[int] = frozenset()
    """Indexes of requests that have not caught up, and get no tree this time."""
    known: frozenset[int] = frozenset()
    """Indexes of requests whose trees need no forward pass, their roots' children included."""


@runtime_checkable
class Drafter(Protocol):
    """Proposes next tokens for requests whose confirmed tokens it is told. It never sees budgets or acceptance.

    Life of a request: `begin`, then `advance` after each step that confirmed tokens, at last `finish`. Per step:
    `open` with the batch, then `propose_level` for the frontier of roots and for each deeper one. A drafter that raises
    is switched off and its requests are decoded plainly, so it need not guard against its own failure.
    """

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """A request starts, or starts anew, with these tokens: its prompt and whatever it has already been answered."""
        ...

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """These tokens were confirmed after those already known. Raises KeyError for a request that never began."""
        ...

    def open(self, request_ids: Sequence[str]) -> Opening:
        """The batch to draft for: `Frontier.request` is an index into it. Ends the growth of trees opened before."""
        ...

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """At most top_k children for every row of the frontier, best first; levels come in order since `open`."""
        ...

    def backlog(self, request_id: str) -> int | None:
        """Rows that `open` would have to compute for this request besides its root, 0 if it has caught up.

        None for a request that cannot be drafted for at all, such as one longer than the draft's context.
        """
        ...

    def rehearse(self, rows: int, scored: int) -> None:
        """Do the work of a pass over so many rows, proposing for `scored` of them, for a stopwatch; nothing stays."""
        ...

    def finish(self, request_id: str) -> None:
        """The request is over; forget it. Not an error for one that is not known."""
        ...
