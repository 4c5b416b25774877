"""What passes of target and draft cost here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.reading import Reading, TimedPass

CURVES = ("plain", "tree", "draft", "feed")
_TREES_SEEN = 3
_NODES_EACH = 16


@dataclass(frozen=True, slots=True)
class Costs:
    """What things cost here, in seconds by rows."""

    plain: CostCurve
    """A step without trees, by requests; all of it, the host's share included, but drafting."""
    tree: CostCurve
    """A step with trees, by rows: requests and nodes."""
    draft: CostCurve
    """A draft pass over a level of nodes, by rows."""
    feed: CostCurve
    """A draft's first pass, by rows: the roots' and those that were missing, pictures included."""

    def attend(self, requests: int, context: float) -> None:
        """A step begins: passes are of so many requests, which have so many tokens before them in the mean.

        Those of `feed` are not: its rows are mostly prompts, each with another context.
        """
        for curve in (self.plain, self.tree, self.draft):
            curve.attend(requests, context)
        self.feed.attend(0, 0.0)

    def observe(self, kind: str, rows: int, seconds: float) -> None:
        """A pass of one of `CURVES` took so long. Some of `feed` have pictures among their rows, others have none."""
        curve: CostCurve = getattr(self, kind)
        curve.observe(rows, seconds, one_kind=kind != "feed")

    def missing(self, requests: int) -> float:
        """Seconds that `tree` still lacks for so many requests.

        With fewer than three steps seen with trees of up to sixteen nodes each, it holds passes measured alone. What a
        step has besides (the host's share) is then taken to be what plain steps have more.
        """
        if self.tree.seen_between(requests, (1 + _NODES_EACH) * requests) >= _TREES_SEEN:
            return 0.0
        return max(self.plain.at(requests) - self.tree.at(requests), 0.0)

    def copy(self) -> Costs:
        """Curves of their own, as sure as these are."""
        return Costs(**{name: CostCurve.from_dict(getattr(self, name).as_dict()) for name in CURVES})

    def fitted(self, passes: Sequence[TimedPass]) -> Costs:
        """Curves that begin as these and have seen nothing but `passes`, which also say what context adds."""
        curves = {}
        for name in CURVES:
            reading = Reading.fit(each for each in passes if each.kind == name) if name != "feed" else Reading()
            begun = {**getattr(self, name).as_dict(), "observed": [], **reading.as_dict()}
            curves[name] = CostCurve.from_dict(begun)
        costs = Costs(**curves)
        for each in passes:
            curves[each.kind].attend(each.requests, each.context)
            costs.observe(each.kind, each.rows, each.seconds)
        return costs
