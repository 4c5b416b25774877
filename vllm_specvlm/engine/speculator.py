"""Drafting for the batch: who gets a tree, from which drafter, and what happens when the drafter fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from vllm.config import VllmConfig

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.engine import exporter
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.confirmed_text import ConfirmedText
from vllm_specvlm.engine.device_growth import DeviceProposer, can_grow, grow_on_device, levels
from vllm_specvlm.engine.drafters import drafter_for, with_lookup
from vllm_specvlm.engine.eligibility import Eligibility
from vllm_specvlm.engine.feature_drafter import FeatureDrafter
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.metrics import Metrics
from vllm_specvlm.engine.mixed_drafter import MixedDrafter
from vllm_specvlm.engine.model_drafter import ModelDrafter
from vllm_specvlm.engine.options import METHOD, SpecVLMOptions
from vllm_specvlm.engine.peers import PeerFailedError, Peers
from vllm_specvlm.engine.planned_growth import Growable
from vllm_specvlm.engine.planning import Planning
from vllm_specvlm.engine.profile_key import profile_given, profile_key
from vllm_specvlm.engine.rehearsal import graph_sizes, rehearse, rehearsed_costs
from vllm_specvlm.engine.sampling import GREEDY_BELOW
from vllm_specvlm.engine.step_clock import Elapsed
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.tree_bounds import TreeBounds
from vllm_specvlm.engine.tree_memory import TreeMemory
from vllm_specvlm.schedule.answer_lengths import AnswerLengths
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Mode
from vllm_specvlm.schedule.profile import Profile
from vllm_specvlm.timeline.sight import BLIND, Sight
from vllm_specvlm.tree.accept import Accepted
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.grow import grow
from vllm_specvlm.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

    from vllm_specvlm.engine.verification import TreePlace

logger = logger_for(__name__)

AnyDrafter = TypeVar("AnyDrafter", bound=Drafter)

_STOCK_RUNNER = (
    "Method 'specvlm' was configured by hand; start the engine with "
    '--speculative-config \'{"method": "specvlm", ...}\' and without --worker-cls.'
)


class Speculator:
    """vLLM's proposer object of a `specvlm` engine: owns the drafter and keeps its failures away from requests."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """As vLLM builds a custom proposer: from the engine's configuration alone."""
        given = vllm_config.additional_config.get(METHOD)
        if given is None:
            raise ValueError(_STOCK_RUNNER)
        self.options = SpecVLMOptions.parse(given)
        self.shape = self.options.shape()
        self.tally = Tally()
        self._config = vllm_config
        self.metrics = Metrics()
        self._logprobs_mode: str = vllm_config.model_config.logprobs_mode
        drafter = drafter_for(vllm_config, self.options, self.tally)
        self._model = drafter if isinstance(drafter, ModelDrafter) else None
        self._drafter: Drafter | None = with_lookup(drafter, vllm_config, self.options)
        self._failure: Exception | None = None
        self._planning: Planning | None = None
        self._accepted = 0
        self._lengths = AnswerLengths()

    def load_model(self, target_model: object) -> None:
        """Load the draft's weights, if there is a draft model."""
        if self._model is not None:
            self._model.load(target_model)

    def bind(self, runner: Batch) -> None:
        """Tell the runner whose batch is drafted for."""
        self._runner = runner
        self._eligible = Eligibility(runner, self.shape, self._logprobs_mode)
        self._text = ConfirmedText(runner)
        self._peers = Peers()
        if self._peers.first:
            self.metrics = exporter.metrics()
        if self._model is not None:
            self._model.bind(runner, self._peers)

    def bound_trees(self, memory: TreeMemory, requests: int) -> int:
        """Bound the trees of a step by the memory for their K/V; returns how many nodes the target may verify.

        `requests`: a batch has at most.
        """
        self._bounds = TreeBounds.of(memory, self.shape.nodes, self._model, requests)
        return self._bounds.nodes

    def allocate_trees(self) -> None:
        """See `ModelDrafter.allocate_trees`."""
        if self._model is not None:
            self._model.allocate_trees()

    def profile_run(self, pictures: Mapping[str, Any] | None) -> None:
        """For vLLM's measuring of memory: see `ModelDrafter.profile_run`."""
        if self._model is not None:
            with self._switching_off():
                self._model.profile_run(pictures)
                self._peers.agree()

    @property
    def kept_bytes(self) -> int:
        """What the drafter keeps on the device at most, of pictures and features."""
        return 0 if self._model is None else self._model.kept_bytes

    def capture(self, descriptor: Any) -> None:
        """Capture a CUDA graph of a pass of the draft, while vLLM captures the target's (`BatchDescriptor`)."""
        if self._model is not None and self._drafter is not None:
            with self._switching_off():
                self._model.capture(descriptor)
                self._peers.agree()

    def forget_graphs(self) -> None:
        """vLLM captured some only to see what they take, and has thrown them away."""
        if self._model is not None:
            self._model.graphs.forget()

    def cache_allocated(self) -> None:
        """vLLM's KV cache exists."""
        if self._model is not None:
            self._model.cache_allocated()

    def warm_up(self) -> None:
        """Compile the draft before the first request pays for it."""
        if self._model is not None:
            with self._switching_off():
                self._model.warm_up()
                self._peers.agree()

    def start_planning(self, target: Callable[[int], object], most_rows: int) -> None:
        """Measure what passes cost, and plan from now on; `target` is a pass of the target over so many rows."""
        if self._drafter is None or not self.options.plans:
            return
        key = profile_key(self._config, self.options)
        profile = profile_given(self.options.profile, key, self._peers)
        costs = self._measured(self._drafter, target, most_rows) if profile is None else profile.costs
        if costs is not None:
            self._planning = Planning(key, costs, self._peers, None if profile is None else profile.overhead)

    def _measured(self, drafter: Drafter, target: Callable[[int], object], most_rows: int) -> Costs | None:
        """What passes cost, by trying; None if the drafter fails at it, which is then off."""
        device = self._runner.device
        graphs = graph_sizes(self._config.compilation_config, device)
        step = rehearse(target, most_rows, self._peers, device)
        with self._switching_off():
            return rehearsed_costs(step, drafter, most_rows, self._peers, device, graphs)
        return None

    @property
    def planning(self) -> Planning:
        """Raises RuntimeError where nothing is planned."""
        if self._planning is None:
            raise RuntimeError("There is no planner to stand in for; leave 'planner', 'tree' and 'paths' out.")
        return self._planning

    def profile(self) -> Profile | None:
        """What steps and passes cost as far as is known now; None without a planner."""
        return None if self._planning is None else self._planning.profile()

    def exchange_drafter(self, by: Callable[[Drafter], AnyDrafter]) -> AnyDrafter | None:
        """Put another drafter in the place of the one there is, and made from it; None if that was switched off."""
        if self._drafter is None:
            return None
        self._drafter = found = by(self._drafter)
        return found

    def sights(self, request_id: str) -> list[Sight]:
        """What the draft sees of each picture of a request that it has been fed with."""
        if self._model is not None:
            return self._model.sights(request_id)
        features = self._runner.requests[request_id].mm_features
        return [Sight(feature.mm_position.length, BLIND) for feature in features]

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Never called by our runner, which drafts in `draft`; vLLM requires a proposer to have it."""
        raise RuntimeError(_STOCK_RUNNER)

    def verifies(self, request_id: str) -> bool:
        """See `Eligibility`."""
        return self._eligible.verifies(request_id)

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Before a step: forget finished requests and note which cache blocks changed hands."""
        over = sorted(scheduled.finished_req_ids)  # a set: its order differs between ranks
        forgotten = [*over, *(request.req_id for request in scheduled.scheduled_new_reqs)]
        for request_id in forgotten:
            self._eligible.forget(request_id)
            self._text.forget(request_id)
        self._watch(lambda drafter: self._follow(drafter, scheduled, over, forgotten))

    def _follow(
        self, drafter: Drafter, scheduled: SchedulerOutput, over: Sequence[str], forgotten: Sequence[str]
    ) -> None:
        """Tell whoever drafts and plans what ends, starts and changes hands in the step to come."""
        if self._planning is not None:
            self._planning.clock.observe_schedule(scheduled)
        for request_id in over:
            if (state := self._runner.requests.get(request_id)) is not None:
                self._lengths.observe(len(state.output_token_ids))
        for request_id in forgotten:
            if self._planning is not None:
                self._planning.growth.forget(request_id)
            # Also what was never drafted for: the planner asked for its backlog all the same.
            drafter.finish(request_id)
        if self._model is not None:
            self._model.observe_schedule(scheduled)

    @property
    def feature_layers(self) -> tuple[int, ...] | None:
        """The target's layers whose inputs a head needs; (): what leaves its final norm; None: there is no head."""
        return self._model.head_config.feature_layers if isinstance(self._model, FeatureDrafter) else None

    def keep_features(
        self,
        confirmed: Callable[[], Mapping[str, tuple[int, np.ndarray]]],
        features: Callable[[], torch.Tensor],
        encoded: Mapping[str, torch.Tensor],
    ) -> None:
        """After a step of the target, for a feature head: see `FeatureDrafter`."""
        head = self._model
        if isinstance(head, FeatureDrafter):
            self._watch(lambda _: head.keep_features(confirmed(), features()))
            self._watch(lambda _: head.keep_pictures(encoded))

    def observe_step(self, has_trees: bool) -> None:
        """Every step: keep the tally."""
        self.metrics.step(has_trees)
        if has_trees:
            self.tally.tree_steps += 1
        else:
            self.tally.plain_steps += 1

    def observe_accepted(self, places: Sequence[TreePlace], accepted: Mapping[int, Accepted]) -> None:
        """After acceptance: keep the tally. Of trees that were not verified nothing is learned."""
        ids = self._runner.input_batch.req_ids
        verified = [place for place in places if place.dense_start is not None]
        for place in verified:
            nodes, path = len(place.tree), len(accepted[place.request].path)
            self.tally.trees += 1
            self.tally.nodes += nodes
            self.tally.accepted += path
            self._accepted += path
            state = self._runner.requests[ids[place.request]]
            params = state.sampling_params
            sampled = params is not None and params.temperature >= GREEDY_BELOW
            self.metrics.tree(nodes, path + 1, picture=bool(state.mm_features), sampled=sampled)
        planning = self._planning
        if planning is not None:
            walked = {ids[place.request]: (place.tree, accepted[place.request]) for place in verified}
            self._watch(lambda _: planning.growth.observe_accepted(walked))

    def draft(self, confirmed: Sequence[int], code: FlatCode) -> dict[str, list[int]]:
        """Encoded trees for the next step by request id; requests without one are decoded plainly.

        Args:
            confirmed: per row of the batch, how many tokens the request got in the step just done (one in the middle
                of its prompt none, and it is not drafted for).
            code: how trees travel in vLLM's draft lists.
        """
        if self._drafter is None:
            return {}
        codes: dict[str, list[int]] = {}
        with self.tally.clock("draft"), self._switching_off():
            codes = self._draft(confirmed, code)
        self.metrics.spent(self.tally.seconds)
        self.metrics.compressed(self.tally.compressions)
        return codes

    def _draft(self, confirmed: Sequence[int], code: FlatCode) -> dict[str, list[int]]:
        assert self._drafter is not None
        planning = self._planning
        elapsed = planning.clock.begin_drafting() if planning is not None else Elapsed(None, 0)
        if self._failure is not None:
            raise self._failure
        self._peers.agree()
        ended = self._eligible.ended(confirmed)
        if self._lookup_reads(self._drafter):
            ids = self._runner.input_batch.req_ids
            for row in (row for row in ended if self._text.has_told(ids[row])):
                self._text.tell(self._drafter, ids[row], ended[row])
        rows = [row for row, count in enumerate(confirmed) if count and row not in ended]
        batch = self._bounds.within(self._eligible.growable(rows))
        if planning is not None:
            trees = self._grow_planned(self._drafter, planning, batch, len(rows), elapsed)
        elif batch:
            self.metrics.plan("fixed")
            trees = self._grow(self._drafter, batch)
        else:
            trees = {}
        codes = {request_id: code.encode(tree) for request_id, tree in trees.items() if len(tree)}
        if planning is None or not planning.recording:
            codes |= {g.request_id: g.with_room(codes.get(g.request_id, [])) for g in batch if g.grammar}
        if planning is not None:
            planning.clock.end_drafting()
        self._peers.agree()
        return codes

    def _grow(self, drafter: Drafter, batch: Sequence[Growable]) -> dict[str, TokenTree]:
        """Trees of the options' own size."""
        for growable in batch:
            self._text.tell(drafter, growable.request_id)
        drafter = _grower(drafter, batch)
        opening = drafter.open([growable.request_id for growable in batch])
        budgets, depths = [growable.nodes for growable in batch], [growable.depth for growable in batch]
        ends = [growable.ends for growable in batch]
        device = self._device_proposer(drafter)
        if device is not None:
            found = grow_on_device(device, self.shape, budgets, depths, levels(self.shape, budgets, depths), ends)
            return {batch[i].request_id: grown.tree for i, grown in found.trees.items()}
        grown = grow(drafter, self.shape, budgets, range(len(batch)), depths, opening.known, ends)
        return {batch[i].request_id: tree for i, tree in grown.items()}

    def _device_proposer(self, drafter: Drafter) -> DeviceProposer | None:
        """The drafter, if its trees can grow with nobody waiting for its device.

        Not while lookup looks at its trees or a trace is recorded: both want to see every level.
        """
        model = self._model
        return model if model is drafter and model.grows_on_device and can_grow(self.shape) else None

    def _grow_planned(
        self,
        drafter: Drafter,
        planning: Planning,
        batch: Sequence[Growable],
        requests: int,
        elapsed: Elapsed,
    ) -> dict[str, TokenTree]:
        """Trees of the planner's choice, in a step in which so many `requests` will decode."""
        planned = planning.growth
        planner = planned.planner
        planner.overhead = planning.clock.overhead
        if elapsed.cycle is not None and not planned.dictated:  # what grammars dictate, no draft has achieved
            planner.achieved(elapsed.requests, elapsed.requests + self._accepted, elapsed.cycle)
        self._accepted = 0
        planned.observe_step(batch)
        if self._lookup_reads(drafter):
            for growable in batch:
                self._text.tell(drafter, growable.request_id)
        backlogs = [(growable, drafter.backlog(growable.request_id)) for growable in batch]
        able = [(growable, backlog) for growable, backlog in backlogs if backlog is not None]
        plan = planner.plan(requests, [self._candidate(growable, backlog) for growable, backlog in able])
        if able:
            self.tally.plans[plan.mode.value] += 1
            self.metrics.plan(plan.mode.value)
        if plan.mode is Mode.PLAIN:
            return {}
        chosen = [able[i][0] for i in plan.chosen]
        for growable in chosen:
            self._text.tell(drafter, growable.request_id)
        drafter = _grower(drafter, chosen)
        return planned.grow(drafter, chosen, self.shape, self._device_proposer(drafter))

    def _candidate(self, growable: Growable, backlog: int) -> Candidate:
        state = self._runner.requests[growable.request_id]
        remaining = self._lengths.remaining(len(state.output_token_ids), growable.left)
        return Candidate(growable.request_id, backlog, remaining, growable.kind)

    def _lookup_reads(self, drafter: Drafter) -> bool:
        """Whether to tell a drafter of all requests: lookup learns also from those that it did not draft for."""
        return self._model is None or isinstance(drafter, MixedDrafter)

    def _watch(self, call: Callable[[Drafter], None]) -> None:
        """Run a call outside drafting; a failure waits for the next drafting, where all ranks can agree on it."""
        if self._drafter is None or self._failure is not None:
            return
        try:
            call(self._drafter)
        except Exception as failure:
            self._failure = failure

    @contextmanager
    def _switching_off(self) -> Iterator[None]:
        """Whatever fails inside, here or on another rank, ends the drafter and nothing else."""
        try:
            yield
        except PeerFailedError:
            self._switch_off()
        except Exception:
            self._peers.tell_failure()
            self._switch_off()

    def _switch_off(self) -> None:
        """Go on without the drafter, which failed with the exception being handled."""
        logger.exception("The drafter failed and is switched off; requests go on without speculation.")
        self.tally.drafter_failures += 1
        self.metrics.switched_off()
        self._drafter = self._model = self._planning = self._failure = None


def _grower(drafter: Drafter, batch: Sequence[Growable]) -> Drafter:
    """Who grows the batch's trees: the drafter, or the one inside it while lookup has no part in them."""
    return drafter.grower([each.request_id for each in batch]) if isinstance(drafter, MixedDrafter) else drafter
