"""How many requests may have trees at once, and how large: what the memory for their K/V has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.planned_growth import Growable
from vllm_specvlm.engine.tree_memory import TreeMemory

logger = logger_for(__name__)


class Growing(Protocol):
    """A drafter that keeps K/V of the trees it grows."""

    @property
    def layers(self) -> list[str]:
        """The layers that it keeps K/V of."""
        ...

    def bound_trees(self, rows: int, requests: int) -> int:
        """Bound them to so many rows; returns how many requests, of `requests` at most, can then be drafted for."""
        ...


@dataclass(frozen=True, slots=True)
class TreeBounds:
    """Of one step."""

    nodes: int
    """The target verifies at most."""
    requests: int
    """Are drafted for at most."""

    @classmethod
    def of(cls, memory: TreeMemory, tree: int, drafter: Growing | None, requests: int) -> TreeBounds:
        """What `memory` has room for, and no more than ever needed.

        Args:
            memory: of the loaded layers.
            tree: most nodes of one tree.
            drafter: one with layers, if there is.
            requests: most of a batch.
        """
        names = memory.target()
        nodes = min(memory.rows(names), tree * requests)
        most = requests
        if drafter is not None:
            most = drafter.bound_trees(memory.rows(drafter.layers), requests)
        logger.info(
            "Method 'specvlm' verifies up to %d tree nodes a step, whose keys and values take %.0f MiB, and drafts for "
            "up to %d requests at once; option 'tree_memory_mib' bounds both.",
            nodes,
            nodes * memory.row_bytes(names) / (1 << 20),
            most,
        )
        return cls(nodes, most)

    def within(self, batch: Sequence[Growable]) -> list[Growable]:
        """The requests that may have trees all at once, and nodes that fit together, evenly shared."""
        batch = batch[: min(self.requests, self.nodes)]
        share = self.nodes // max(1, len(batch))
        return [g if g.nodes <= share else replace(g, nodes=share) for g in batch]
