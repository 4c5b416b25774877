"""The planner of an engine with what it goes by: costs, a clock, the trees it grows; and what stands in for it."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.engine.planned_growth import PlannedGrowth
from vllm_specvlm.engine.recording_growth import RecordingGrowth
from vllm_specvlm.engine.step_clock import StepClock
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.forced_planner import ForcedPlanner
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.schedule.profile import Profile, ProfileKey
from vllm_specvlm.schedule.reading import TimedPass
from vllm_specvlm.schedule.trace import TracedRequest


class Planning:
    """Plans, and learns what passes cost; for a while somebody else may decide, to see what that costs."""

    def __init__(self, key: ProfileKey, costs: Costs, peers: Peers, overhead: float | None = None) -> None:
        """Costs as they are known at first; `overhead` as in a profile, if there is one."""
        self.costs = costs
        self.clock = StepClock(costs, peers)
        if overhead is not None:
            self.clock.overhead = overhead
        self.growth = PlannedGrowth(Planner(costs), self.clock)
        self._key = key

    @property
    def recording(self) -> bool:
        """Whether trees are drafted to be written down, and none is verified."""
        return isinstance(self.growth, RecordingGrowth)

    def profile(self) -> Profile:
        """What steps and passes cost as far as is known now."""
        return Profile(self._key, self.costs, self.clock.overhead)

    def force(self, nodes: int | None) -> None:
        """Draft trees of so many nodes for everyone, 0 for none, to see what they cost; None plans again.

        All passes meanwhile can be had from `timed`.
        """
        self.clock.watched = None if nodes is None else self.clock.watched or []
        planner = Planner(self.costs) if nodes is None else ForcedPlanner(self.costs, nodes)
        self.growth = PlannedGrowth(planner, self.clock)

    def timed(self) -> Sequence[TimedPass]:
        """The passes since `force`."""
        return self.clock.watched or ()

    def record(self, nodes: int, runner: Batch) -> None:
        """Draft so many for every position and verify nothing, to learn what drafts would have been worth."""
        self.growth = RecordingGrowth(ForcedPlanner(self.costs, nodes), self.clock, runner)

    def recorded(self) -> list[TracedRequest]:
        """The requests answered since `record`, in the order in which they ended; planning goes on from here."""
        if not isinstance(self.growth, RecordingGrowth):
            raise RuntimeError("Nothing was recorded; call 'specvlm_record' first.")
        found = self.growth.recorded()
        self.force(None)
        return found
