"""The trees a draft model is growing while their nodes are known to the device alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.growing_tree import GrowingTree
from vllm_specvlm.engine.transfer import upload_all
from vllm_specvlm.engine.tree_step import TreeStep

_MASK_BITS = 128


@dataclass(frozen=True, slots=True)
class DeviceLevel:
    """The nodes to expand in one level, w of each of the R trees; places without a node are padding."""

    depth: int
    """0 for roots, which are one of each tree; one more per level."""
    tokens: torch.Tensor
    """int64 [R, w], 0 where there is no node; of roots nobody asks."""
    parent_rows: torch.Tensor
    """int64 [R, w]: the parent's place in its tree's line of the level before, 0 where there is no node."""
    live: torch.Tensor
    """bool [R, w]: where there is a node."""


class DeviceTrees:
    """As `GrowingTrees`, of one drafting: dense rows and masks follow from tensors, and the host learns none of them.

    All that does not depend on the nodes is uploaded beforehand in one copy. Nodes get the same dense rows as there.
    """

    def __init__(
        self,
        trees: Sequence[GrowingTree],
        store: DenseStore,
        device: torch.device,
        *,
        dense_root: bool,
        segment: int,
        widths: Sequence[int],
        fast: bool,
    ) -> None:
        """Before the first level.

        Args:
            trees: that have a root, in the order of the lines of every level.
            store: of the nodes' keys and values.
            device: of the draft.
            dense_root: whether the root is the first dense row of each tree.
            segment: dense rows of a tree at most; nodes beyond are not expanded.
            widths: nodes that a level may have of each tree.
            fast: see `TreeStep`.
        """
        self._store, self._segment, self._fast = store, segment, fast
        self._widths = sorted(set(widths))
        spans = [span for tree in trees for span in tree.spans]
        first_span = np.cumsum([0, *(len(tree.spans) for tree in trees)])
        requests = [
            [
                (i * width, width, tree.row, tree.dense_start, first_span[i], len(tree.spans))
                for i, tree in enumerate(trees)
            ]
            for width in self._widths
        ]
        words = np.arange(_MASK_BITS)
        bits = np.zeros((_MASK_BITS, 2), dtype=np.uint64)
        bits[words, words // 64] = np.uint64(1) << (words % 64).astype(np.uint64)
        roots = np.zeros((len(trees), 1, 2), dtype=np.int64)
        roots[..., 0] = int(dense_root)
        self._root, self._start, self._spans, self._bits, self._masks, self._used, *tables = upload_all(
            [
                np.array([[tree.root] for tree in trees], dtype=np.int32),
                np.array([[tree.dense_start] for tree in trees], dtype=np.int64),
                np.asarray(spans, dtype=np.int32).reshape(-1, 2),
                bits.view(np.int64),
                roots,
                np.full((len(trees), 1), int(dense_root), dtype=np.int64),
                *(np.asarray(table, dtype=np.int32).reshape(-1, 6) for table in requests),
            ],
            device,
        )
        self._requests = dict(zip(self._widths, tables, strict=True))

    def level(self, level: DeviceLevel) -> tuple[TreeStep, torch.Tensor]:
        """Attention of a level below the roots, and which of its nodes (bool [R, w]) found room in their segments."""
        place = self._used + level.live.cumsum(1) - 1
        taken = level.live & (place < self._segment)
        place = place.clamp(0, _MASK_BITS - 1)
        above = self._masks.gather(1, level.parent_rows[..., None].expand(-1, -1, 2))
        self._masks = torch.where(taken[..., None], above | self._bits[place], 0)
        self._used = self._used + taken.sum(1, keepdim=True)
        step = TreeStep(
            rows=(),
            requests=self._requests[level.live.shape[1]],
            spans=self._spans,
            visible_upto=torch.where(taken, self._root, 0).view(-1),
            dense_at=torch.where(taken, self._start + place, -1).int().view(-1),
            ancestors=self._masks.view(-1, 2),
            store=self._store,
            covers_batch=True,
            fast=self._fast,
        )
        return step, taken
