"""What passes of target and draft cost here."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_specvlm.schedule.cost_curve import CostCurve


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
