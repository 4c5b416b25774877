"""The token tree: drafted tokens and who follows whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MAX_NODES = 127
"""Most nodes of a tree. With the root that is 128 dense nodes: an ancestor mask is two 64-bit words."""

_MASK_BYTES = 16


@dataclass(frozen=True, slots=True)
class TokenTree:
    """An immutable tree of drafted tokens below a root, the last confirmed token, which is not itself a node.

    `tokens[i]` is node i's token and `parents[i]` its parent: -1 for the root, else a node before i. Every prefix of
    the nodes is therefore a tree. Token -1 (vLLM's placeholder for a draft not known yet) is allowed and never
    accepted. `depths[i]` is the number of steps from the root, so 1 for the root's children.

    Raises ValueError for more than MAX_NODES nodes, a parent that is not before its child, or a token below -1.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents):
            raise ValueError(
                f"A tree needs one parent per token, got {len(self.tokens)} tokens and {len(self.parents)} parents."
            )
        if len(self.tokens) > MAX_NODES:
            raise ValueError(f"A tree holds at most {MAX_NODES} nodes, got {len(self.tokens)}; speculate fewer tokens.")
        if self.tokens and min(self.tokens) < -1:
            raise ValueError(f"Token {min(self.tokens)} is no token; use ids from 0 up, or -1 for a placeholder.")
        depths: list[int] = []
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise ValueError(
                    f"Node {node} has parent {parent}; list each parent before its children and call the root -1."
                )
            depths.append(1 if parent < 0 else depths[parent] + 1)
        object.__setattr__(self, "depths", tuple(depths))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each node follows the one before it; true of the empty tree."""
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> TokenTree:
        """The tree in which each of `tokens` follows the one before it."""
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)))

    def prefix(self, n: int) -> TokenTree:
        """The tree of the first `n` nodes; this very tree if it has no more."""
        if n < 0:
            raise ValueError(f"A prefix of {n} nodes does not exist; ask for 0 or more.")
        return self if n >= len(self.tokens) else TokenTree(self.tokens[:n], self.parents[:n])

    def restricted(self, nodes: Sequence[int]) -> TokenTree:
        """The tree of these nodes alone, in their order.

        Raises ValueError if a node is left without its parent, or the nodes do not ascend.
        """
        place = {-1: -1}
        for i, node in enumerate(nodes):
            if self.parents[node] not in place or (i and node <= nodes[i - 1]):
                raise ValueError(f"Node {node} cannot be kept among {list(nodes)}; keep its parent, and go upwards.")
            place[node] = i
        return TokenTree(tuple(self.tokens[n] for n in nodes), tuple(place[self.parents[n]] for n in nodes))

    def ancestor_masks(self, *, rooted: bool = False) -> npt.NDArray[np.uint64]:
        """Who sees whom, packed: uint64 [n, 2]; bit j of row i says that node j is i or an ancestor of i.

        Node j is bit j % 64 of word j // 64. With `rooted` the root is counted as the first node: the result is
        [n + 1, 2], row 0 and bit 0 are the root's, node i is row i + 1 and bit i + 1, and every row sees the root.
        """
        first = int(rooted)
        masks: list[int] = [1] if rooted else []
        for node, parent in enumerate(self.parents):
            above = masks[parent + first] if parent + first >= 0 else 0
            masks.append(above | 1 << (node + first))
        packed = b"".join(mask.to_bytes(_MASK_BYTES, "little") for mask in masks)
        return np.frombuffer(packed, dtype="<u8").astype(np.uint64).reshape(-1, 2)
