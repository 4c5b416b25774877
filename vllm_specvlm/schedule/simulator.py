"""Traces under other loads and policies, without an engine: a virtual clock that goes by cost curves.

The planner, the cost curves, the acceptance model and the growing of trees are the engine's own. Simulated is what lies
around them: which requests run together, what each step and draft pass costs, and what is accepted. Idealised:

* a prompt is computed in one step, whatever its length, and adds to a step what it costs alone less a step of one row;
* the cache has room for everybody, and nothing is preempted or shared;
* nothing is drafted beyond the recorded trees, and at positions without one the nearest before stands in;
* a pass costs what its rows and their context cost, each time the same.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vllm_specvlm.schedule.acceptance import FEATURES, AcceptanceModel, features
from vllm_specvlm.schedule.answer_lengths import AnswerLengths
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.logistic import Floats
from vllm_specvlm.schedule.plan import Candidate, Kind, Mode
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.schedule.replay import Replay
from vllm_specvlm.schedule.trace import RecordedTree, TracedRequest
from vllm_specvlm.tree.grow import Frontier, LevelProposal, grow_scored
from vllm_specvlm.tree.tree_shape import TreeShape

_ENDLESS = 1 << 20


@dataclass(frozen=True, slots=True)
class Prediction:
    """What came out. `plans` counts the steps by `planner.Mode`."""

    seconds: float
    tokens: int
    steps: int
    trees: int
    nodes: int
    accepted: int
    plans: Mapping[str, int]

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of all requests per second, prompts included."""
        return self.tokens / self.seconds

    @property
    def acceptance_length(self) -> float:
        """Tokens per verified tree, the bonus token counted; 1.0 without trees."""
        return 1 + self.accepted / self.trees if self.trees else 1.0


@dataclass(slots=True)
class _Live:
    """A request that is being answered."""

    request: TracedRequest
    backlog: int
    done: int = 0
    next_tree: int = 0
    chosen: tuple[int, ...] = ()
    """Nodes of the recorded tree to be verified in the next step."""
    recorded: RecordedTree | None = None

    @property
    def limit(self) -> int:
        return self.request.limit or _ENDLESS

    def tree(self) -> RecordedTree | None:
        """The tree recorded here or nearest before."""
        trees = self.request.trees
        while self.next_tree < len(trees) and trees[self.next_tree].at <= self.done:
            self.next_tree += 1
        return trees[self.next_tree - 1] if self.next_tree else None

    def accepted(self) -> tuple[int, ...]:
        """Nodes that the target accepts of those chosen."""
        if self.recorded is None:
            return ()
        chosen = set(self.chosen)
        return tuple(node for node in self.recorded.path if node in chosen)


class _Policy(Protocol):
    """Drafts for a batch."""

    def draft(self, batch: Sequence[_Live], step: float, tokens: int) -> float:
        """Choose each request's nodes; seconds of it.

        `step` is what the last decoding step took, 0 if it was none, and `tokens` what it gave.
        """
        ...

    def attend(self, requests: int, context: float) -> None:
        """What comes is of so many requests with so many tokens before them in the mean."""
        ...

    def observe_step(self, requests: int, rows: int, seconds: float) -> None:
        """A step without prompts took so long."""
        ...

    def observe_accepted(self, batch: Sequence[_Live]) -> None:
        """The batch's trees were verified."""
        ...

    def finish(self, live: _Live) -> None:
        """An answer is complete."""
        ...

    @property
    def plans(self) -> dict[str, int]:
        """Steps by mode."""
        ...


@dataclass(slots=True)
class _Steady:
    """The same shape in every step, None for plain decoding."""

    costs: Costs
    overhead: float
    shape: TreeShape | None
    plans: dict[str, int] = field(default_factory=lambda: dict.fromkeys([mode.value for mode in Mode], 0))

    def draft(self, batch: Sequence[_Live], step: float, tokens: int) -> float:
        batch = [live for live in batch if live.done + 1 < live.limit]
        self.plans[(Mode.PLAIN if self.shape is None or not batch else Mode.TREES).value] += 1
        if self.shape is None or not batch:
            return 0.0
        trees = [live.tree() for live in batch]
        replay = Replay(trees)
        grown = grow_scored(replay, self.shape, [self.shape.nodes] * len(batch), range(len(batch)))
        seconds = _passes(self.costs, replay.rows, batch) + self.overhead
        for i, live in enumerate(batch):
            live.recorded, live.chosen, live.backlog = trees[i], grown[i].tree.tokens, 0
        return seconds

    def attend(self, requests: int, context: float) -> None: ...

    def observe_step(self, requests: int, rows: int, seconds: float) -> None: ...

    def observe_accepted(self, batch: Sequence[_Live]) -> None: ...

    def finish(self, live: _Live) -> None: ...


class _Planned:
    """The engine's planner; the same life as in `engine.speculator` and `engine.planned_growth`."""

    def __init__(self, costs: Costs, overhead: float, shape: TreeShape) -> None:
        self._truth, self._overhead, self._shape = costs, overhead, shape
        # What the planner knows, it learns from the clock, as in the engine; it starts from the same profile.
        self._known = costs.copy()
        self._planner = Planner(self._known)
        self._planner.overhead = overhead
        self._acceptance = AcceptanceModel()
        self._lengths = AnswerLengths()
        self._features: dict[int, Floats] = {}
        self._levels: list[Floats] = []
        self._drafted, self._requests = 0.0, 0
        self.plans = dict.fromkeys([mode.value for mode in Mode], 0)

    def attend(self, requests: int, context: float) -> None:
        self._known.attend(requests, context)

    def observe_step(self, requests: int, rows: int, seconds: float) -> None:
        self._known.observe("plain" if rows == requests else "tree", rows, seconds)

    def finish(self, live: _Live) -> None:
        self._lengths.observe(live.request.tokens)
        self._features.pop(id(live), None)
        self._planner.forget(str(id(live)))

    def observe_accepted(self, batch: Sequence[_Live]) -> None:
        for live in batch:
            known = self._features.pop(id(live), None)
            if known is None or live.recorded is None:
                continue
            path = set(live.accepted())
            tried = [
                i for i, node in enumerate(live.chosen) if (above := live.recorded.parents[node]) < 0 or above in path
            ]
            self._acceptance.observe(known[tried], [live.chosen[i] in path for i in tried])

    def draft(self, batch: Sequence[_Live], step: float, tokens: int) -> float:
        if step:
            self._planner.achieved(self._requests, tokens, self._drafted + step)
        self._drafted, self._requests = 0.0, len(batch)
        requests = len(batch)
        batch = [live for live in batch if live.done + 1 < live.limit]
        plan = self._planner.plan(
            requests,
            [self._candidate(live) for live in batch],
        )
        self.plans[plan.mode.value] += 1
        if plan.mode is Mode.PLAIN:
            return 0.0
        self._drafted = self._grow([batch[i] for i in plan.chosen])
        return self._drafted

    def _candidate(self, live: _Live) -> Candidate:
        remaining = self._lengths.remaining(live.done, live.limit - live.done)
        return Candidate(str(id(live)), live.backlog, remaining, Kind(live.request.sampled, live.request.picture))

    def _grow(self, batch: Sequence[_Live]) -> float:
        trees = [live.tree() for live in batch]
        self._levels = []
        self._batch, self._replay = batch, Replay(trees)
        budgets = [self._shape.nodes] * len(batch)
        grown = grow_scored(self, self._shape, budgets, range(len(batch)), gate=self._planner)
        seconds = _passes(self._truth, self._replay.rows, batch, self._known) + self._overhead
        kept = self._planner.cut({i: (g.log_probs, g.tree.depths) for i, g in grown.items()})
        flat = np.concatenate([level.reshape(-1, len(FEATURES)) for level in self._levels])
        for i, live in enumerate(batch):
            live.recorded, live.backlog = trees[i], 0
            live.chosen = grown[i].tree.tokens[: kept[i]]
            self._features[id(live)] = flat[list(grown[i].origins[: kept[i]])]
        return seconds

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The recorded children with calibrated probabilities."""
        proposal = self._replay.propose_level(frontier, top_k)
        requests = [self._batch[i].request for i in frontier.request]
        level = features(
            proposal.log_probs.astype(np.float64),
            int(frontier.depth[0]) + 1,
            np.array([request.sampled for request in requests]),
            np.array([request.picture for request in requests]),
        )
        self._levels.append(level)
        return LevelProposal(proposal.tokens, self._acceptance.log_probs(level))


def _passes(costs: Costs, levels: Sequence[int], batch: Sequence[_Live], known: Costs | None = None) -> float:
    """Seconds of a tree's draft passes; the first one also computes what the drafter has not seen yet."""
    seconds = 0.0
    for level, rows in enumerate(levels):
        name = "draft" if level else "feed"
        rows += 0 if level else sum(live.backlog for live in batch)
        curve: CostCurve = getattr(costs, name)
        spent = curve.at(rows)
        seconds += spent
        if known is not None:
            known.observe(name, rows, spent)
    return seconds


def _policy(name: str, costs: Costs, overhead: float, shape: TreeShape) -> _Policy:
    if name == "planned":
        return _Planned(costs, overhead, shape)
    if name == "plain":
        return _Steady(costs, overhead, None)
    found = re.fullmatch(r"(tree|chain)-([1-9][0-9]*)", name)
    if found is None:
        raise ValueError(f"There is no policy {name!r}; write 'planned', 'plain', 'tree-8' or 'chain-4'.")
    nodes = int(found[2])
    if found[1] == "chain":
        return _Steady(costs, overhead, TreeShape.chain(nodes))
    return _Steady(costs, overhead, TreeShape(nodes, min(shape.depth, nodes), shape.width, shape.top_k))


def simulate(
    trace: Sequence[TracedRequest],
    costs: Costs,
    overhead: float,
    policy: str,
    concurrency: int,
    shape: TreeShape | None = None,
    warm: bool = False,
) -> Prediction:
    """Answer the requests of a trace, at most `concurrency` at a time, each not before its arrival.

    Args:
        trace: in the order in which the requests are asked.
        costs: of a profile. They are not changed.
        overhead: seconds of drafting outside draft passes, per step with trees.
        policy: "planned", "plain", "tree-N" or "chain-N" with N nodes.
        concurrency: most requests at a time, 1 or more.
        shape: bounds of planned trees; depth, width and top_k also of "tree-N". Default: 32 nodes in 6 levels.
        warm: answer the trace once before it counts, so that the planner knows the traffic as a server does that runs.

    Raises:
        ValueError: an unknown policy, no requests, or a concurrency below 1.
    """
    if not trace or concurrency < 1:
        raise ValueError(f"{len(trace)} requests at a concurrency of {concurrency}; give one or more of both.")
    costs = costs.copy()
    chosen = _policy(policy, costs, overhead, shape or TreeShape(nodes=32, depth=6, width=4, top_k=4))
    if warm:
        _replay(trace, costs, chosen, concurrency)
        chosen.plans.update(dict.fromkeys(chosen.plans, 0))
    return _replay(trace, costs, chosen, concurrency)


def _replay(trace: Sequence[TracedRequest], costs: Costs, chosen: _Policy, concurrency: int) -> Prediction:
    waiting = deque(trace)
    running: list[_Live] = []
    now = 0.0
    tokens = steps = trees = nodes = accepted = 0
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrival)
        started: list[_Live] = []
        while waiting and len(running) + len(started) < concurrency and waiting[0].arrival <= now:
            request = waiting.popleft()
            started.append(_Live(request, request.prompt))
        with_trees = [live for live in running if live.chosen]
        rows = len(running) + sum(len(live.chosen) for live in with_trees)
        prompts = sum(_prompt(costs, live.request) for live in started)
        context = sum(live.request.prompt + live.done for live in running) / max(len(running), 1)
        costs.attend(len(running), context)
        chosen.attend(len(running), context)
        seconds = _step(costs, len(running), rows) + prompts
        now += seconds
        steps += 1
        decoded = bool(running)
        if decoded and not started:
            chosen.observe_step(len(running), rows, seconds)
        chosen.observe_accepted(with_trees)
        given = 0
        for live in running:
            emitted = min(1 + len(live.accepted()), live.request.tokens - live.done)
            if live.chosen:
                trees += 1
                nodes += len(live.chosen)
                accepted += emitted - 1
            given += emitted
            live.done += emitted
            live.backlog += emitted
            live.chosen = ()
        for live in started:
            live.done = 1
        running += started
        for live in running:
            if live.done >= live.request.tokens:
                tokens += live.request.tokens
                chosen.finish(live)
        running = [live for live in running if live.done < live.request.tokens]
        if running:
            now += chosen.draft(running, seconds - prompts if decoded else 0.0, given)
    return Prediction(now, tokens, steps, trees, nodes, accepted, dict(chosen.plans))


def _step(costs: Costs, requests: int, rows: int) -> float:
    if not requests:
        return costs.plain.at(1)
    return costs.plain.at(requests) if rows == requests else costs.tree.at(rows)


def _prompt(costs: Costs, request: TracedRequest) -> float:
    """What a prompt adds to a step of one row."""
    costs.attend(1, request.prompt / 2)
    alone = request.prompt_seconds if request.prompt_seconds is not None else costs.tree.at(request.prompt)
    return max(alone - costs.plain.at(1), 0.0)
