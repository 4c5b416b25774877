"""The target's features of confirmed tokens, kept until a feature head is fed with them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from vllm_specvlm.engine.transfer import upload

_Chunk = tuple[np.ndarray, torch.Tensor]


class FeatureStore:
    """Per request the features of some positions; within a bound, those of the longest unused request dropped first.

    Features exist only in the step that computes them, and the head is not fed in every step. What was dropped, or was
    never computed here since vLLM found it in its prefix cache, stays a hole in the head's context.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """Empty."""
        self._capacity = capacity_bytes
        self._bytes = 0
        self._chunks: OrderedDict[str, list[_Chunk]] = OrderedDict()

    def keep(self, request_id: str, positions: np.ndarray, features: torch.Tensor) -> None:
        """Features [n, size] of positions (int64 [n], ascending, behind all that are held)."""
        if not len(positions):
            return
        self._chunks.setdefault(request_id, []).append((positions, features))
        self._chunks.move_to_end(request_id)
        self._bytes += features.nbytes
        while self._bytes > self._capacity:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Drop one chunk of the request that was not added to for the longest time."""
        request_id, chunks = next(iter(self._chunks.items()))
        self._bytes -= chunks.pop(0)[1].nbytes
        if not chunks:
            del self._chunks[request_id]

    def held(self, request_id: str) -> np.ndarray:
        """int64, ascending: positions whose features are there."""
        chunks = self._chunks.get(request_id)
        return np.concatenate([positions for positions, _ in chunks]) if chunks else np.empty(0, dtype=np.int64)

    def holds(self, request_id: str, position: int) -> bool:
        """Whether the latest position is this one."""
        chunks = self._chunks.get(request_id)
        return chunks is not None and int(chunks[-1][0][-1]) == position

    def read(self, request_id: str, positions: np.ndarray) -> torch.Tensor:
        """[n, size] of positions (int64 [n]) that are held."""
        chunks = self._chunks[request_id]
        features = chunks[0][1] if len(chunks) == 1 else torch.cat([rows for _, rows in chunks])
        places = np.searchsorted(self.held(request_id), positions)
        return features[upload(places, features.device)]

    def drop_before(self, request_id: str, position: int) -> None:
        """Positions below this were fed."""
        rest: list[_Chunk] = []
        for positions, features in self._chunks.pop(request_id, []):
            first = int(np.searchsorted(positions, position))
            self._bytes -= features.nbytes
            if first < len(positions):
                # A slice would keep the whole.
                rest.append((positions[first:], features[first:].clone() if first else features))
                self._bytes += rest[-1][1].nbytes
        if rest:
            self._chunks[request_id] = rest

    def forget(self, request_id: str) -> None:
        """The request is over, or is computed anew."""
        for _, features in self._chunks.pop(request_id, []):
            self._bytes -= features.nbytes
