"""Acceptance of a step's trees on the device: the commit is queued before the host learns what was accepted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.transfer import download_all, upload, upload_all
from vllm_specvlm.engine.verification import Verification
from vllm_specvlm.tree.accept import Accepted


class TreeWalks:
    """The walks of `tree.accept.walk`, by the operator; requests without a tree emit the token of their one row."""

    def __init__(self, verification: Verification, row_tokens: torch.Tensor, first_rows: Sequence[int]) -> None:
        """Queue them.

        Args:
            verification: the step's trees.
            row_tokens: int64, the target's token at each row of the logits, on the device.
            first_rows: per request of the batch its first row, the root's.
        """
        self._places = verification.places
        sizes = np.zeros(len(first_rows), dtype=np.int64)
        for place in self._places:
            sizes[place.request] = len(place.tree)
        # A tree that is not verified has no token that could be accepted.
        tokens = [
            token if place.dense_start is not None else -1 for place in self._places for token in place.tree.tokens
        ]
        parents = [parent for place in self._places for parent in place.tree.parents]
        tables: list[np.ndarray] = [
            np.asarray(tokens, dtype=np.int64),
            np.asarray(parents, dtype=np.int32),
            np.concatenate(([0], np.cumsum(sizes))).astype(np.int32),
            np.asarray(first_rows, dtype=np.int32),
        ]
        node_tokens, node_parents, first_nodes, rows = upload_all(tables, row_tokens.device)
        most = max(max(place.tree.depths) for place in self._places)
        slots = verification.linear_slots
        self._walks = ops.walk_trees(node_tokens, node_parents, first_nodes, row_tokens, rows, slots, most)
        self._dense_nodes = verification.dense_nodes

    def commit_slots(self) -> list[torch.Tensor]:
        """As `Verification.commit_slots`."""
        slots = self._walks.slots
        if len(self._dense_nodes) != slots.shape[1]:
            slots = slots[:, upload(self._dense_nodes, slots.device)]
        return list(slots)

    def wait(self) -> tuple[np.ndarray, dict[int, Accepted]]:
        """The emitted tokens, int64 [requests, longest] padded with -1, and the walk of each tree by request index.

        This is where the CPU waits for the step.
        """
        emitted, paths, counts = download_all([self._walks.emitted, self._walks.path, self._walks.counts])
        accepted = {}
        for place in self._places:
            request = place.request
            count = int(counts[request])
            path, tokens = paths[request, :count].tolist(), emitted[request, : count + 1].tolist()
            accepted[request] = Accepted(tuple(path), tuple(tokens))
        return emitted[:, : int(counts.max()) + 1], accepted
