"""The trees a draft model is growing: their dense rows, and what each node may attend to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.device_trees import DeviceTrees
from vllm_specvlm.engine.growing_tree import GrowingTree
from vllm_specvlm.engine.tree_step import TreeRows
from vllm_specvlm.tree.grow import Frontier
from vllm_specvlm.tree.token_tree import MAX_NODES
from vllm_specvlm.tree.tree_shape import TreeShape


class GrowingTrees:
    """The batch's trees between `open` and the last level; nodes' K/V stay in dense segments, one per request."""

    def __init__(self, shape: TreeShape, *, dense_root: bool) -> None:
        """With `dense_root` the root is a dense row too, the first of its segment; else its K/V are paged."""
        self.store = DenseStore()
        self._own = int(dense_root)
        # Rows of a request: every node that may be expanded, and the root; a mask has a bit for each.
        self._segment = min(MAX_NODES + 1, self._own + (shape.depth - 1) * shape.width)
        self._trees: dict[int, GrowingTree] = {}
        self._masks = np.empty((0, 2), dtype=np.uint64)

    def bound(self, rows: int, requests: int) -> int:
        """Keep to so many dense rows; returns how many requests can then grow trees at once, one at least."""
        # A head's tree of one node has no dense rows.
        most = min(requests, max(1, rows // self._segment)) if self._segment else requests
        self.store.limit = most * self._segment
        return most

    def clear(self, requests: int) -> None:
        """Forget all trees; room for those of so many requests."""
        self.store.reserve(requests * self._segment)
        self._trees = {}

    def add(self, index: int, row: int, root: int, spans: Sequence[tuple[int, int]]) -> None:
        """The tree of request `index` of the batch that is drafted for."""
        self._trees[index] = GrowingTree(row, root, spans, index * self._segment, self._own)

    def __getitem__(self, index: int) -> GrowingTree:
        """The tree of request `index`."""
        return self._trees[index]

    @property
    def indexes(self) -> list[int]:
        """Requests with a tree, in the order in which they were added."""
        return list(self._trees)

    @property
    def dense_starts(self) -> list[int]:
        """First rows of their dense segments, in the same order."""
        return [tree.dense_start for tree in self._trees.values()]

    def on_device(self, device: torch.device, widths: Sequence[int], *, fast: bool) -> DeviceTrees:
        """The same trees for a growth that the host does not follow; see there."""
        return DeviceTrees(
            list(self._trees.values()),
            self.store,
            device,
            dense_root=bool(self._own),
            segment=self._segment,
            widths=widths,
            fast=fast,
        )

    def roots(self, frontier: Frontier) -> tuple[np.ndarray, list[int]]:
        """Rows of the frontier of roots that have a tree (int64), and which of the trees each is."""
        self._masks = np.zeros((len(frontier.node), 2), dtype=np.uint64)
        self._masks[:, 0] = self._own
        order = {index: i for i, index in enumerate(self._trees)}
        taken = [i for i, index in enumerate(frontier.request.tolist()) if index in order]
        return np.asarray(taken, dtype=np.int64), [order[int(frontier.request[i])] for i in taken]

    def level(self, frontier: Frontier) -> tuple[list[TreeRows], np.ndarray]:
        """Attention rows of a deeper frontier, and the rows of it (int64) that still found room in their segments."""
        masks = self._masks[frontier.parent_row]
        self._masks = masks
        rows: list[TreeRows] = []
        taken: list[int] = []
        for index in dict.fromkeys(frontier.request.tolist()):
            tree = self._trees[index]
            mine = np.flatnonzero(frontier.request == index)[: self._segment - tree.dense_rows]
            if not len(mine):
                continue
            dense = np.arange(tree.dense_rows, tree.dense_rows + len(mine))
            masks[mine, dense // 64] |= np.uint64(1) << (dense % 64).astype(np.uint64)
            tree.dense_rows += len(mine)
            rows.append(
                TreeRows(
                    first_row=len(taken),
                    block_row=tree.row,
                    spans=tree.spans,
                    visible_upto=np.full(len(mine), tree.root, dtype=np.int32),
                    dense_start=tree.dense_start,
                    dense_at=(tree.dense_start + dense).astype(np.int32),
                    ancestors=masks[mine],
                )
            )
            taken.extend(mine.tolist())
        return rows, np.asarray(taken, dtype=np.int64)
