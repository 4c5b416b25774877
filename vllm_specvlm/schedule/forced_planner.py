"""A stand-in for the planner while costs are measured: it plans what it is told, whatever that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Mode, Plan
from vllm_specvlm.schedule.planner import Planner


class ForcedPlanner(Planner):
    """Trees of one size for every request that may have one. It learns nothing and goes on observing the costs."""

    def __init__(self, costs: Costs, nodes: int) -> None:
        """`nodes`: of each tree, 0 for plain steps."""
        super().__init__(costs)
        self._nodes = nodes
        self._trees = 0

    def plan(self, requests: int, candidates: Sequence[Candidate]) -> Plan:
        """All candidates."""
        self._trees, self._rows = len(candidates), []
        if not self._nodes or not candidates:
            return Plan(Mode.PLAIN, ())
        return Plan(Mode.TREES, tuple(range(len(candidates))))

    def layout(self, trees: int, depth: int, width: int) -> tuple[int, ...] | None:
        """As many as a tree has nodes."""
        return (1, *[min(width, self._nodes)] * (depth - 1))

    def admit(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """As many rows as all trees have nodes, so that small trees show what narrow draft passes cost."""
        return [row < self._nodes * self._trees for row in range(len(scores))]

    def cut(self, trees: Mapping[int, tuple[Sequence[float], Sequence[int]]]) -> list[int]:
        """The wanted size, or what was grown."""
        return [min(self._nodes, len(scores)) for scores, _ in trees.values()]

    def achieved(self, requests: int, tokens: float, seconds: float) -> None:
        """Nothing is learned."""
