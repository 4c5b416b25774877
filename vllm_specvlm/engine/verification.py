"""Verification of the batch's trees: bend vLLM's linear step into trees, accept, commit (plan, steps 2 to 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.static_tables import StaticTables
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep
from vllm_specvlm.tree.accept import Accepted, walk
from vllm_specvlm.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class TreePlace:
    """Where one request's tree stands in the batch: the root in `root_row`, the nodes in the rows after it."""

    tree: TokenTree
    request: int
    root_row: int
    root_position: int
    first_node: int
    """Number of its first node among the nodes of all trees."""
    dense_start: int | None
    """First row of its K/V in the dense store; None: it is not verified, and only the root's token counts. (vLLM pads
    requests with placeholders that nobody drafted; others may find the store full.)"""


class Verification:
    """The trees of one step, from the prepared inputs to the commit.

    Tree rows are kept out of the paged cache: their slots are -1 during the forward pass and their K/V stand in the
    dense store. Only accepted rows are written, through the layer's own cache update, before anybody can hash or
    read the block.
    """

    def __init__(
        self,
        trees: Mapping[str, TokenTree],
        request_index: Mapping[str, int],
        query_start: np.ndarray,
        computed_tokens: np.ndarray,
        room: int | None = None,
    ) -> None:
        """Place the trees; `query_start` [requests + 1] and `computed_tokens` [requests] are vLLM's of this step.

        `room` is for so many nodes, None for any number.
        """
        self.places: list[TreePlace] = []
        self._query_start = query_start
        self._computed_tokens = computed_tokens
        first_node = self.dense_rows = 0
        for request_id, tree in sorted(trees.items(), key=lambda item: request_index[item[0]]):
            request = request_index[request_id]
            root_row = int(query_start[request + 1]) - len(tree) - 1
            root_position = int(computed_tokens[request]) + root_row - int(query_start[request])
            fits = tree.tokens[0] >= 0 and (room is None or self.dense_rows + len(tree) <= room)
            dense_start = self.dense_rows if fits else None
            self.places.append(TreePlace(tree, request, root_row, root_position, first_node, dense_start))
            first_node += len(tree)
            self.dense_rows += len(tree) if fits else 0
        self._slots: list[torch.Tensor] = []

    @property
    def node_rows(self) -> np.ndarray:
        """int64: batch rows of all tree nodes."""
        spans = [np.arange(p.root_row + 1, p.root_row + 1 + len(p.tree)) for p in self.places]
        return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)

    def position_shift(self) -> np.ndarray:
        """int64 per node row: what turns vLLM's linear position (root + 1 + index) into root + depth."""
        shifts = [np.asarray(p.tree.depths) - np.arange(1, len(p.tree) + 1) for p in self.places]
        return np.concatenate(shifts).astype(np.int64)

    def divert_slots(self, slot_mappings: Sequence[torch.Tensor]) -> None:
        """Keep tree rows out of the paged cache, remembering the linear slots for the commit.

        Args:
            slot_mappings: per KV cache group, int64 [batch rows]; changed in place.
        """
        rows = upload(self.node_rows, slot_mappings[0].device)
        self._slots = [mapping[rows] for mapping in slot_mappings]
        for mapping in slot_mappings:
            mapping.index_fill_(0, rows, -1)

    def step(
        self, store: DenseStore, device: torch.device, *, fast: bool, tables: StaticTables | None = None
    ) -> TreeStep:
        """The attention arguments: tree requests, and plain decode rows too when no prompt chunk is in the batch.

        They lie in `tables` where the device has such (`TreeStep.room`).
        With a prompt chunk in the batch the stock attention runs first and tree rows are computed over it.
        """
        store.reserve(max(1, self.dense_rows))
        lengths = np.diff(self._query_start)
        trees = {place.request: place for place in self.places}
        covers = all(
            length == (len(trees[request].tree) + 1 if request in trees else 1)
            for request, length in enumerate(lengths)
        )
        rows = []
        for request in range(len(lengths)):
            if request in trees:
                rows.append(_tree_rows(trees[request]))
            elif covers:
                position = int(self._computed_tokens[request])
                rows.append(_decode_row(request, int(self._query_start[request]), position))
        return TreeStep.build(rows, store, device, covers_batch=covers, fast=fast, tables=tables)

    def accept(self, row_tokens: Sequence[int], first_rows: Sequence[int], ours: Sequence[bool]) -> dict[int, Accepted]:
        """Walk every tree.

        Args:
            row_tokens: the target's token at each logits row.
            first_rows: per request its first logits row, the root's.
            ours: per request whether its node rows were sampled; else the root's token is all it gets.

        Returns:
            The walk by request index.
        """
        accepted = {}
        for place in self.places:
            first = first_rows[place.request]
            if ours[place.request] and place.dense_start is not None:
                accepted[place.request] = walk(place.tree, row_tokens[first : first + len(place.tree) + 1])
            else:
                accepted[place.request] = Accepted((), (row_tokens[first],))
        return accepted

    @property
    def linear_slots(self) -> torch.Tensor:
        """int64 [KV cache groups, nodes]: the slots that vLLM had meant for the rows of all trees."""
        return torch.stack(self._slots)

    @property
    def dense_nodes(self) -> np.ndarray:
        """int64 [dense rows]: which of the nodes of all trees each is."""
        return np.concatenate(
            [
                np.empty(0, dtype=np.int64),
                *(p.first_node + np.arange(len(p.tree)) for p in self.places if p.dense_start is not None),
            ]
        )

    def kept_rows(self, accepted: Mapping[int, Accepted]) -> dict[int, np.ndarray]:
        """Per request with a tree the batch rows (int64) of its root and of the accepted nodes, in their order."""
        return {
            place.request: place.root_row + np.asarray([0, *(node + 1 for node in accepted[place.request].path)])
            for place in self.places
        }

    def commit_slots(self, accepted: Mapping[int, Accepted]) -> list[torch.Tensor]:
        """Per KV cache group, int64 [dense rows]: the slot each dense row is written to, -1 where it is rejected.

        The node accepted at depth d goes to the linear slot of depth d, that is of the d-th row after the root.
        """
        source = np.full(self.dense_rows, -1, dtype=np.int64)
        for place in self.places:
            for depth, node in enumerate(accepted[place.request].path):
                assert place.dense_start is not None
                source[place.dense_start + node] = place.first_node + depth
        device = self._slots[0].device
        taken = upload(source, device)
        return [torch.where(taken < 0, -1, linear[taken.clamp(min=0)]) for linear in self._slots]


def _tree_rows(place: TreePlace) -> TreeRows:
    """Root and nodes of one tree: all see the paged tokens up to the root, nodes also their ancestors."""
    count = len(place.tree) + 1
    visible = place.root_position + 1
    dense_at = np.full(count, -1, dtype=np.int32)
    ancestors = np.zeros((count, 2), dtype=np.uint64)
    if place.dense_start is not None:
        dense_at[1:] = np.arange(place.dense_start, place.dense_start + count - 1)
        ancestors[1:] = place.tree.ancestor_masks()
    return TreeRows(
        first_row=place.root_row,
        block_row=place.request,
        spans=((0, visible),),
        visible_upto=np.full(count, visible, dtype=np.int32),
        dense_start=place.dense_start or 0,
        dense_at=dense_at,
        ancestors=ancestors,
    )


def _decode_row(request: int, row: int, position: int) -> TreeRows:
    """A request without drafts in a batch that has no prompt chunk."""
    return TreeRows(
        first_row=row,
        block_row=request,
        spans=((0, position + 1),),
        visible_upto=np.full(1, position + 1, dtype=np.int32),
        dense_start=0,
        dense_at=np.full(1, -1, dtype=np.int32),
        ancestors=np.zeros((1, 2), dtype=np.uint64),
    )
