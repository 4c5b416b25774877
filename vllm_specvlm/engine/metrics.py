"""What the worker counts for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from vllm_specvlm.engine.metric import (
    ACCEPTANCE_LENGTH,
    CELLS,
    COMPRESSED,
    DRAFT_PASS_SECONDS,
    DRAFT_SECONDS,
    DRAFTER_OFF,
    FORBIDDEN_NODES,
    PLANS,
    STEPS,
    TREE_NODES,
    VERIFY_SECONDS,
    first_cell,
)
from vllm_specvlm.tree.token_tree import MAX_NODES

_PLANS = {values: first_cell(PLANS, values) for (values,) in PLANS.series}
_STEPS = {with_trees: first_cell(STEPS, "tree" if with_trees else "plain") for with_trees in (True, False)}
_SECONDS = {
    "draft": first_cell(DRAFT_SECONDS),
    "draft_model": first_cell(DRAFT_PASS_SECONDS),
    "verify": first_cell(VERIFY_SECONDS),
}
_COMPRESSED = {primitive: first_cell(COMPRESSED, primitive) for (primitive,) in COMPRESSED.series}
_TREES = {
    (picture, sampled): (
        first_cell(TREE_NODES, "image" if picture else "text", "sampled" if sampled else "greedy"),
        first_cell(ACCEPTANCE_LENGTH, "image" if picture else "text", "sampled" if sampled else "greedy"),
    )
    for picture in (False, True)
    for sampled in (False, True)
}
_FORBIDDEN = first_cell(FORBIDDEN_NODES)
_NODES_BUCKET = [bisect_left(TREE_NODES.bounds, nodes) for nodes in range(MAX_NODES + 1)]
_LENGTH_BUCKET = [bisect_left(ACCEPTANCE_LENGTH.bounds, length) for length in range(MAX_NODES + 2)]
_NODES_SUM = TREE_NODES.width - 1
_LENGTH_SUM = ACCEPTANCE_LENGTH.width - 1


class Metrics:
    """Adds to cells that the API server reads when it is scraped (`engine/exporter.py`).

    One writer of each cell: the first rank, or the scheduler's process of what grammars forbid. Each call costs about a
    microsecond and cannot fail.
    """

    def __init__(self, cells: list[float] | memoryview[float] | None = None) -> None:
        """`cells` are `metric.CELLS` numbers; without them the counts go nowhere."""
        self._cells: list[float] | memoryview[float] = [0.0] * CELLS if cells is None else cells

    def plan(self, mode: str) -> None:
        """A drafting was decided upon: `plain`, `trees` or `probe` by the planner, `fixed` without one."""
        self._cells[_PLANS[mode]] += 1

    def step(self, has_trees: bool) -> None:
        """The target made a step."""
        self._cells[_STEPS[has_trees]] += 1

    def tree(self, nodes: int, length: int, *, picture: bool, sampled: bool) -> None:
        """A tree was verified.

        Args:
            nodes: its size, drafted tokens.
            length: the tokens it brought, the bonus token included.
            picture: its request shows something.
            sampled: its request samples, instead of taking the likeliest token.
        """
        cells = self._cells
        nodes_at, length_at = _TREES[picture, sampled]
        cells[nodes_at + _NODES_BUCKET[nodes]] += 1
        cells[nodes_at + _NODES_SUM] += nodes
        cells[length_at + _LENGTH_BUCKET[length]] += 1
        cells[length_at + _LENGTH_SUM] += length

    def forbidden(self, nodes: int) -> None:
        """So many drafted tokens were taken out of a tree because a grammar forbids them."""
        self._cells[_FORBIDDEN] += nodes

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Seconds since the start by activity, as `Tally` has them."""
        for activity, cell in _SECONDS.items():
            self._cells[cell] = seconds[activity]

    def compressed(self, pictures: Mapping[str, int]) -> None:
        """Pictures compressed since the start by primitive, as `Tally` has them."""
        for primitive, count in pictures.items():
            self._cells[_COMPRESSED[primitive]] = count

    def switched_off(self) -> None:
        """The drafter failed and is switched off."""
        self._cells[first_cell(DRAFTER_OFF)] = 1.0
