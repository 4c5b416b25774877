"""Agreement of tensor-parallel ranks that the drafter works: a rank that drafted alone would wait forever."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group


class PeerFailedError(RuntimeError):
    """The drafter failed on another rank; this one has to stop drafting too."""


class Peers:
    """One vote before each draft forward pass and one at the end of drafting, only with several ranks.

    A rank whose drafter fails votes no once, in the place of the vote its peers are at; all then stop drafting. A
    failure inside a collective of the forward pass itself cannot be voted on: there the executor's time-out reports.
    """

    def __init__(self) -> None:
        """The ranks of this worker's tensor-parallel group."""
        self._group = get_tp_group()

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return bool(self._group.world_size == 1)

    @property
    def first(self) -> bool:
        """Whether this rank is the one that speaks for all."""
        return bool(self._group.is_first_rank)

    def agree(self) -> None:
        """Vote that all is well here.

        Raises:
            PeerFailedError: it is not well elsewhere.
        """
        if not self.alone and not self._vote(True):
            raise PeerFailedError("The drafter failed on another tensor-parallel rank.")

    def verdict(self, trouble: str | None) -> str | None:
        """What is in the way of a road that ranks take together: here, or else on another rank; None if nothing is."""
        if self.alone or self._vote(trouble is None):
            return trouble
        return trouble or "it fails on another tensor-parallel rank"

    def tell_failure(self) -> None:
        """Vote that the drafter failed here."""
        if not self.alone:
            self._vote(False)

    def share(self, values: list[Any]) -> list[Any]:
        """The first rank's values, on every rank."""
        if self.alone:
            return values
        box = [values]
        torch.distributed.broadcast_object_list(box, src=self._group.ranks[0], group=self._group.cpu_group)
        return box[0]

    def _vote(self, well: bool) -> bool:
        ballot = torch.tensor([int(well)], dtype=torch.int32)
        torch.distributed.all_reduce(ballot, op=torch.distributed.ReduceOp.MIN, group=self._group.cpu_group)
        return bool(ballot.item())
