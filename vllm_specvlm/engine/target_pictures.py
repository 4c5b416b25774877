"""The target's own visual tokens, held on to until a feature head has compressed them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch


class TargetPictures:
    """Visual tokens by content hash, least recently used dropped first.

    vLLM drops a picture's encoder output once its prompt is computed, which may be before the head is fed.
    """

    def __init__(self, capacity_bytes: int, hidden_size: int) -> None:
        """`hidden_size` of the target: some encoders append features for deeper layers, which are left out."""
        self._capacity = capacity_bytes
        self._hidden = hidden_size
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._offered: set[str] = set()

    def keep(self, encoded: Mapping[str, torch.Tensor]) -> None:
        """What vLLM's encoder cache holds after a step, [visual tokens, ...] each.

        Only what is new there is taken: vLLM holds on to more than fits in here, and offers it after every step.
        """
        for identifier in sorted(encoded.keys() - self._offered - self._kept.keys()):
            own = encoded[identifier][..., : self._hidden].clone()  # A slice would keep its whole batch in memory.
            if own.nbytes <= self._capacity:
                self._kept[identifier] = own
                self._bytes += own.nbytes
        self._offered = set(encoded)
        while self._bytes > self._capacity:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def get(self, identifier: str) -> torch.Tensor | None:
        """[visual tokens, hidden size], or None: the head then goes blind for this picture."""
        found = self._kept.get(identifier)
        if found is not None:
            self._kept.move_to_end(identifier)
        return found
