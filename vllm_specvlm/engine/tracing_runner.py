"""The model runner while a trace is recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import DraftTokenIds

from vllm_specvlm.engine.picture_grid import picture_grid
from vllm_specvlm.engine.recording_drafter import RecordingDrafter
from vllm_specvlm.engine.runner import TreeModelRunner
from vllm_specvlm.engine.step_recorder import RecordedRequest, StepRecorder
from vllm_specvlm.timeline.sight import Sight

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class TracingRunner(TreeModelRunner):
    """Stands before a runner's own class from `start` to `stop`; at other times a trace costs nothing."""

    recorder: StepRecorder
    _own_class: type[TreeModelRunner]
    _grids: dict[str, list[tuple[int, int] | None]]

    @classmethod
    def start(cls, runner: TreeModelRunner) -> None:
        """From now on every step of `runner` is recorded."""
        drafter = runner.drafter.exchange_drafter(RecordingDrafter)
        own = type(runner)
        runner.__class__ = type(cls.__name__, (cls, own), {})
        assert isinstance(runner, TracingRunner)
        runner._own_class = own
        runner.recorder = StepRecorder(runner.drafter.tally, drafter)
        runner._grids = {}

    def stop(self) -> list[RecordedRequest]:
        """The requests that came since `start`, in their order; the runner is its old self again."""
        found = list(self.recorder.requests.values())
        self.drafter.exchange_drafter(_own)
        own = self._own_class
        del self.recorder, self._grids, self._own_class
        self.__class__ = own
        return found

    def execute_model(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        """As ever."""
        for request in scheduler_output.scheduled_new_reqs:
            self.recorder.admit(request.req_id, len(request.prompt_token_ids or ()))
            config = self.model_config.hf_config
            self._grids[request.req_id] = [picture_grid(config, feature) for feature in request.mm_features]
        self.recorder.step_begins()
        return super().execute_model(scheduler_output, *args, **kwargs)

    def propose_draft_token_ids(
        self, scheduler_output: SchedulerOutput, sampled_token_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        """As ever; a step's tokens are known here."""
        drafts = super().propose_draft_token_ids(scheduler_output, sampled_token_ids, *args, **kwargs)
        self.recorder.step_ends(self.input_batch.req_ids, sampled_token_ids, self._trees, self._kept_rows)
        return drafts

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """As ever, timed."""
        began, plans = time.perf_counter(), dict(self.drafter.tally.plans)
        drafts = super().take_draft_token_ids()
        codes = {} if drafts is None else dict(zip(drafts.req_ids, drafts.draft_token_ids, strict=True))
        drafted = [request_id for request_id, code in codes.items() if code[0] >= 0]  # else there is room for a grammar
        self.recorder.drafting(began, plans, bool(drafted))
        for request_id in drafted:
            if self.recorder.unseen(request_id):
                began = time.perf_counter()
                self.recorder.saw(request_id, self._sights(request_id), began)
        return drafts

    def _sights(self, request_id: str) -> list[Sight]:
        sights = self.drafter.sights(request_id)
        return [sight.on(grid) for sight, grid in zip(sights, self._grids[request_id], strict=True)]


def _own(drafter: Any) -> Any:
    """The drafter behind the one that records."""
    return drafter.drafter
