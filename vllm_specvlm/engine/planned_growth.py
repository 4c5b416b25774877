"""Growing the batch's trees as the planner wants, and letting it learn from what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.engine.acceptance_on_device import AcceptanceOnDevice
from vllm_specvlm.engine.device_growth import DeviceProposer, grow_on_device, levels
from vllm_specvlm.engine.pass_times import PassTimes
from vllm_specvlm.engine.step_clock import StepClock
from vllm_specvlm.schedule.acceptance import FEATURES, AcceptanceModel, features
from vllm_specvlm.schedule.grammar_share import GrammarShare
from vllm_specvlm.schedule.logistic import Floats
from vllm_specvlm.schedule.plan import Kind
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.tree.accept import Accepted
from vllm_specvlm.tree.grow import Frontier, Grown, LevelProposal, grow_scored
from vllm_specvlm.tree.token_tree import TokenTree
from vllm_specvlm.tree.tree_shape import TreeShape

_NOTHING = TokenTree((), ())


@dataclass(frozen=True, slots=True)
class Growable:
    """A request that may have a tree, within these bounds."""

    request_id: str
    nodes: int
    depth: int
    sampled: bool
    """It samples, instead of taking the likeliest token."""
    picture: bool
    """It shows a picture."""
    left: int
    """Tokens its answer may still get."""
    bounded: bool
    """It asked for smaller trees than the engine's: they say nothing about others'."""
    grammar: bool = False
    """A grammar takes nodes out of its tree, and puts others in, before they are verified."""
    ends: frozenset[int] = frozenset()
    """Tokens that end its answer."""

    @property
    def kind(self) -> Kind:
        """Requests whose trees are worth about the same."""
        return Kind(self.sampled, self.picture, usual=not self.bounded and not self.grammar)

    def with_room(self, drafted: Sequence[int]) -> list[int]:
        """The codes of its tree, and placeholders where a grammar may say what comes next (see `TreeGrammars`)."""
        return [*drafted, *[-1] * min(self.nodes - len(drafted), self.depth)]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A tree on its way to verification, and its nodes' features, float64 [nodes, 6]."""

    tree: TokenTree
    features: npt.NDArray[np.float64]


class PlannedGrowth:
    """Stands between the drafter and the trees: its proposals' probabilities are calibrated, its passes are timed."""

    def __init__(self, planner: Planner, clock: StepClock) -> None:
        """A planner and the clock that feeds its cost curves."""
        self.planner = planner
        self.acceptance = AcceptanceModel()
        self._clock = clock
        self._sent: dict[str, _Sent] = {}
        self._shares: dict[str, GrammarShare] = {}
        self.dictated = 0
        """Nodes verified in the last step that grammars had put into trees (see `TreeGrammars`)."""
        self._drafter: Drafter | None = None
        self._batch: Sequence[Growable] = ()
        self._levels: list[npt.NDArray[np.float64]] = []
        self._sampled = self._picture = np.zeros(0, dtype=bool)
        self._log_share = np.zeros(0)
        self._since = 0.0
        self._fed_rows = 0

    def grow(
        self, drafter: Drafter, batch: Sequence[Growable], shape: TreeShape, device: DeviceProposer | None = None
    ) -> dict[str, TokenTree]:
        """Trees of the batch by request id, the planner's choice of nodes.

        Args:
            drafter: already told of the batch's confirmed tokens.
            batch: the requests the plan chose.
            shape: the engine's bounds.
            device: the same drafter, if it drafts without waiting for its device: the planner then decides before the
                first level how many there are and how wide, unless it wants to look at each (a probe).
        """
        self._drafter, self._batch = drafter, batch
        self._levels = []
        self._sampled = np.array([g.sampled for g in batch])
        self._picture = np.array([g.picture for g in batch])
        self._log_share = np.log([self.share(g.request_id) for g in batch])
        self._since = time.perf_counter()
        bounds = levels(shape, [g.nodes for g in batch], [g.depth for g in batch])
        widths = self.planner.layout(len(batch), len(bounds), bounds[-1]) if device is not None else None
        if device is not None and widths is not None:
            grown = self._grow_on_device(drafter, device, shape, widths)
        else:
            grown = self._grow_level_by_level(drafter, shape)
        kept = self.planner.cut({i: (g.log_probs, g.passes) for i, g in grown.items()})
        if not any(kept):
            return {}
        flat = np.concatenate([level.reshape(-1, len(FEATURES)) for level in self._levels])
        sent: dict[str, TokenTree] = {}
        for count, (i, g) in zip(kept, grown.items(), strict=True):
            if count:
                tree = sent[batch[i].request_id] = g.tree.prefix(count)
                self._sent[batch[i].request_id] = _Sent(tree, flat[list(g.origins[:count])])
        return sent

    def _grow_level_by_level(self, drafter: Drafter, shape: TreeShape) -> dict[int, Grown]:
        """By index in the batch; the planner admits nodes before each level."""
        batch = self._batch
        opening = drafter.open([growable.request_id for growable in batch])
        self._fed_rows = opening.rows
        grown = grow_scored(
            self,
            shape,
            [growable.nodes for growable in batch],
            range(len(batch)),
            [growable.depth for growable in batch],
            self.planner,
            opening.known,
            [growable.ends for growable in batch],
        )
        return {i: g for i, g in grown.items() if i not in opening.behind}

    def _grow_on_device(
        self, drafter: Drafter, device: DeviceProposer, shape: TreeShape, widths: Sequence[int]
    ) -> dict[int, Grown]:
        """By index in the batch; levels as planned, and their times are learned when all is over."""
        batch = self._batch
        times = PassTimes(device.device)
        opening = drafter.open([growable.request_id for growable in batch])
        rooted = list(device.rooted)
        sampled, picture = self._sampled[rooted], self._picture[rooted]
        found = grow_on_device(
            device,
            shape,
            [growable.nodes for growable in batch],
            [growable.depth for growable in batch],
            widths,
            [growable.ends for growable in batch],
            AcceptanceOnDevice(self.acceptance, sampled, picture, device.device, self._log_share[rooted]),
            times.mark,
        )
        for depth, log_probs in enumerate(found.proposed):
            rows = log_probs.reshape(-1, log_probs.shape[-1]).astype(np.float64)
            each = log_probs.shape[1]
            self._levels.append(features(rows, depth + 1, sampled.repeat(each), picture.repeat(each)))
        for depth, (width, seconds) in enumerate(zip(widths, times.seconds(), strict=False)):
            rows_of_pass = len(rooted) * width if depth else opening.rows
            if depth:
                self.planner.passed(depth, rows_of_pass, found.reach[depth - 1])
            self._clock.took(rows_of_pass, seconds, first=not depth)
        return found.trees

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """The drafter's proposal with probabilities of being accepted in the place of the draft's own."""
        assert self._drafter is not None
        first = not self._levels
        rows = self._fed_rows if first else len(frontier.node)
        if not first and frontier.free is not None:
            rows -= int(frontier.free.sum())
        proposal = self._drafter.propose_level(frontier, top_k)
        level = features(
            proposal.log_probs.astype(np.float64),
            int(frontier.depth[0]) + 1,
            self._sampled[frontier.request],
            self._picture[frontier.request],
        )
        calibrated = LevelProposal(proposal.tokens, self.acceptance.log_probs(level), proposal.foreseen)
        if proposal.settled is not None and proposal.settled.any():
            calibrated, level = _with_settled(calibrated, proposal.log_probs, proposal.settled, level)
        self._levels.append(level)
        shares = self._log_share[frontier.request].astype(np.float32)
        calibrated = LevelProposal(calibrated.tokens, calibrated.log_probs + shares[:, None], calibrated.foreseen)
        # A level costs what there is to do between its pass and the one before it, too.
        if rows:
            self._clock.passed(rows, self._since, first=first)
        self._since = time.perf_counter()
        return calibrated

    def share(self, request_id: str) -> float:
        """What a node of its tree is worth, given its parent, for each that others' are."""
        return self._shares[request_id].value if request_id in self._shares else 1.0

    def observe_step(self, batch: Sequence[Growable]) -> None:
        """Drafting begins for `batch`: of trees of which a grammar left nothing nobody has heard yet."""
        self.dictated = 0
        for request_id in (growable.request_id for growable in batch if growable.grammar):
            share = self._shares.setdefault(request_id, GrammarShare())
            share.rest()
            if (sent := self._sent.pop(request_id, None)) is not None:
                self._learn_share(share, sent, set())

    def observe_accepted(self, trees: Mapping[str, tuple[TokenTree, Accepted]]) -> None:
        """What was accepted of the last step's trees: children of accepted nodes had their chance, others had none.

        A request's grammar decides with the target; what came of its trees says nothing about other requests' drafts.
        """
        outcomes: list[bool] = []
        children: list[Floats] = []
        for request_id, (tree, accepted) in trees.items():
            sent = self._sent.pop(request_id, None)
            nodes = _found_again(tree, _NOTHING if sent is None else sent.tree)
            share = self._shares.get(request_id)
            if share is not None:
                self.dictated += nodes.count(None)
            if sent is None:
                continue
            path = {node for i in accepted.path if (node := nodes[i]) is not None}
            if share is not None:
                self._learn_share(share, sent, path)
            elif None not in nodes:
                verified = set(nodes)
                tried = [node for node in _tried(sent, path) if node in verified]
                children.append(sent.features[tried])
                outcomes += [node in path for node in tried]
        if outcomes:
            self.acceptance.observe(np.concatenate(children), outcomes)

    def _learn_share(self, share: GrammarShare, sent: _Sent, path: AbstractSet[int]) -> None:
        """Of a tree of which these nodes were accepted, whatever the grammar had left of it."""
        tried = _tried(sent, path)
        expected = np.exp(self.acceptance.log_probs(sent.features[tried][:, None]))
        share.observe(expected.ravel().tolist(), sum(node in path for node in tried))

    def forget(self, request_id: str) -> None:
        """The request is over or starts anew."""
        self._sent.pop(request_id, None)
        self._shares.pop(request_id, None)
        self.planner.forget(request_id)


def _tried(sent: _Sent, path: AbstractSet[int]) -> list[int]:
    """Nodes whose parent was accepted, and so had their chance.

    Of what was settled (see `_with_settled`) there is nothing to learn.
    """
    parents = enumerate(sent.tree.parents)
    return [i for i, parent in parents if (parent < 0 or parent in path) and not np.isnan(sent.features[i, 0])]


def _with_settled(
    level: LevelProposal, log_probs: npt.NDArray[np.float32], settled: npt.NDArray[np.bool_], made: Floats
) -> tuple[LevelProposal, Floats]:
    """A calibrated level in which settled children keep their `log_probs`, [F, k], best first again.

    Beside it its features, [F, k, 6], likewise in order; those of settled children are not a number.
    """
    found = np.where(settled, log_probs, level.log_probs)
    order = np.argsort(-found, axis=1, kind="stable")

    def sorted_(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.take_along_axis(values, order, axis=1)

    features_ = np.where(settled[..., None], np.nan, made)
    foreseen = None if level.foreseen is None else sorted_(level.foreseen)
    return (
        LevelProposal(sorted_(level.tokens), sorted_(found), foreseen),
        np.take_along_axis(features_, order[..., None], axis=1),
    )


def _found_again(tree: TokenTree, sent: TokenTree) -> list[int | None]:
    """The node of `sent` that each node of `tree` is; None of one that a grammar added. Trees may have been cut."""
    at = {key: node for node, key in enumerate(zip(sent.parents, sent.tokens, strict=True))}
    nodes: list[int | None] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        above = nodes[parent] if parent >= 0 else -1
        nodes.append(None if above is None else at.get((above, token)))
    return nodes
