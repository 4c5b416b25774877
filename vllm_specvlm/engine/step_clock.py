"""How long steps and draft passes take, for the planner's cost curves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.reading import TimedPass

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

_OVERHEAD_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Elapsed:
    """A drafting and the step after it, on the first rank."""

    cycle: float | None
    """Seconds since the beginning of the last drafting; None unless one step of decoding followed it. What a step
    took that computed prompts too, is what its decoding should have taken."""
    requests: int
    """That decoded in that step."""


class StepClock:
    """Measures on the first rank; all ranks learn the same, at the same point of a step.

    A step runs from the end of one drafting to the beginning of the next, so the scheduler's and the front end's share
    is in it. Steps that compute prompts say nothing about decoding and are left out, and so are waits: a step without
    new requests follows the one before at once.
    """

    def __init__(self, costs: Costs, peers: Peers) -> None:
        """`costs` are what is learned."""
        self._costs = costs
        self._peers = peers
        self._began: float | None = None
        self._ended: float | None = None
        self._scheduled = 0
        self._decoding = (0, 0)
        self._context = 0.0
        self._steady = False
        self._seen: list[tuple[str, int, float]] = []
        self._passes = 0.0
        self.overhead = 1e-3
        """Seconds of drafting outside draft passes, per step with trees."""
        self.watched: list[TimedPass] | None = None
        """All passes from now on, if somebody puts a list here."""

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """A step begins."""
        self._scheduled += 1
        drafts = scheduled.scheduled_spec_decode_tokens
        starting = {request.req_id for request in scheduled.scheduled_new_reqs}
        starting |= scheduled.scheduled_cached_reqs.resumed_req_ids
        decoding = {
            request_id: tokens
            for request_id, tokens in scheduled.num_scheduled_tokens.items()
            if request_id not in starting and tokens == 1 + len(drafts.get(request_id, ()))
        }
        self._decoding = len(decoding), sum(decoding.values())
        going_on = scheduled.scheduled_cached_reqs
        before = zip(going_on.req_ids, going_on.num_computed_tokens, strict=True)
        self._context = sum(tokens for request_id, tokens in before if request_id in decoding) / max(len(decoding), 1)
        self._steady = len(decoding) == len(scheduled.num_scheduled_tokens)

    def begin_drafting(self) -> Elapsed:
        """Drafting begins: learn what was measured since the last time."""
        now = time.perf_counter()
        # What is planned next is mostly for the same requests, some tokens on.
        self._costs.attend(self._decoding[0], self._context)
        if self._began is not None and self._ended is not None:
            requests, rows = self._decoding
            if requests and self._scheduled == 1:
                kind = "plain" if rows == requests else "tree"
                if self._steady:
                    self._seen.append((kind, rows, now - self._ended))
                    step = now - self._ended
                else:
                    step = self._costs.plain.at(requests)
                    if kind == "tree":
                        step = max(self._costs.tree.at(rows) + self._costs.missing(requests), step)
                self._seen.append(("cycle", requests, self._ended - self._began + step))
        self._scheduled = 0
        self._passes = 0.0
        self._began = now
        seen, self._seen = self._peers.share(self._seen), []
        cycle, decoded = None, 0
        for kind, rows, seconds in seen:
            if kind == "cycle":
                cycle, decoded = seconds, rows
            elif kind == "overhead":
                self.overhead += _OVERHEAD_WEIGHT * (min(seconds, max(4 * self.overhead, 1e-3)) - self.overhead)
            else:
                self._costs.observe(kind, rows, seconds)
                if self.watched is not None:
                    self.watched.append(TimedPass(kind, rows, self._decoding[0], self._context, seconds))
        return Elapsed(cycle, decoded)

    def passed(self, rows: int, started: float, *, first: bool) -> None:
        """A draft pass over so many rows began at `started` (of `time.perf_counter`) and has just ended.

        `first`: it computed the roots and what was missing before them, not a level of nodes.
        """
        self.took(rows, time.perf_counter() - started, first=first)

    def took(self, rows: int, seconds: float, *, first: bool) -> None:
        """A draft pass over so many rows took so long; as `passed`."""
        self._passes += seconds
        self._seen.append(("feed" if first else "draft", rows, seconds))

    def end_drafting(self) -> None:
        """Drafting ends and the next step begins."""
        assert self._began is not None
        self._ended = time.perf_counter()
        if self._passes:
            self._seen.append(("overhead", 0, self._ended - self._began - self._passes))
