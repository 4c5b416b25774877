"""Growing token trees level by level from a drafter's probabilities."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vllm_specvlm.tree.token_tree import TokenTree
from vllm_specvlm.tree.tree_shape import RankPath, TreeShape

__all__ = ["Frontier", "Grown", "LevelGate", "LevelProposal", "LevelProposer", "TreeShape", "grow", "grow_scored"]

_NO_CANDIDATE = float("-inf")


@dataclass(slots=True)
class Frontier:
    """The nodes to expand in one level, of all requests: int64 arrays of one length F.

    Rows of one request are contiguous, requests ascend. The first frontier of a tree holds its root alone.
    """

    request: npt.NDArray[np.int64]
    """Index in the batch."""
    node: npt.NDArray[np.int64]
    """-1 for the root, else the node's number among the request's candidates: unique in its tree, below later ones."""
    parent_row: npt.NDArray[np.int64]
    """Row of the node's parent in the frontier before, -1 for roots."""
    token: npt.NDArray[np.int64]
    """The node's token, -1 for roots."""
    depth: npt.NDArray[np.int64]
    """0 for roots, one more per level."""
    free: npt.NDArray[np.bool_] | None = None
    """Rows to answer without a forward pass, by what is known already; None: no row. Below such a row all are."""


@dataclass(slots=True)
class LevelProposal:
    """A drafter's answer to a frontier of F rows: at most k children per row, best first."""

    tokens: npt.NDArray[np.int64]
    """[F, k]."""
    log_probs: npt.NDArray[np.float32]
    """[F, k], natural logarithms, descending along each row; -inf means no candidate here or later in the row."""
    foreseen: npt.NDArray[np.float32] | None = None
    """[F, k], how probably a child's own child is the one that is known already, without a forward pass; None: nothing
    is."""
    settled: npt.NDArray[np.bool_] | None = None
    """[F, k], whose log-probabilities were learned from what the target accepted, and need no calibration; None: no
    child's."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A grown tree, with what is known of each node."""

    tree: TokenTree
    log_probs: tuple[float, ...]
    """Of the node's path from the root under the draft."""
    origins: tuple[int, ...]
    """Which proposal made the node, counting the entries of all levels' `LevelProposal`s, level by level, by rows."""
    passes: tuple[int, ...]
    """How many of the growth's forward passes the node needed: its depth, less the free levels above it; 0 below a free
    root."""


class LevelProposer(Protocol):
    """The part of a drafter that growing needs."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """Children for each row of the frontier, at most top_k."""
        ...


class LevelGate(Protocol):
    """Decides how deep and wide growing goes beyond the shape's bounds."""

    def admit(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Which nodes of a level are worth a row of a forward pass.

        Args:
            depth: of the nodes, 1 or more.
            scores: one per node, of all requests: logarithm of how probably its path is accepted and what follows is
                not known already.
        """
        ...

    def admit_free(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Of the other nodes with a child that is known already: which are worth it.

        Args:
            depth: of the nodes, 1 or more.
            scores: one per node, of all requests: logarithm of how probably its path and that child are accepted.
        """
        ...


def grow(
    drafter: LevelProposer,
    shape: TreeShape,
    budgets: Sequence[int],
    roots: Sequence[int],
    depths: Sequence[int] | None = None,
    free: Collection[int] = (),
    ends: Sequence[Collection[int]] | None = None,
) -> dict[int, TokenTree]:
    """Grow one tree for each batch index in `roots`; `budgets[k]` bounds the nodes of the tree of `roots[k]`.

    `depths[k]`, if given, bounds its levels; nodes of the tokens in `ends[k]` have no children, since nothing comes
    behind them. `roots` ascend; those in `free` are free rows. A budget counts up to `shape.nodes`; 0 or less gives the
    empty tree without asking the drafter.

    A dynamic shape is grown best-first: the result is the `budget` candidates with the greatest product of draft
    probabilities along their path (EAGLE-2, Li et al. 2024, section 4; OPT-Tree, Wang et al. 2025), the sum of which is
    the expected number of accepted tokens if the draft is calibrated. All requests' frontiers make one call per level.
    A level expands the nodes of the level before that are among their request's best `budget` candidates and whose
    children could still enter, at most `shape.width`, best first; growth ends when there are none. A product never
    grows along a path, so the best are a tree, and their order, better first, is topological: a cut keeps the best.
    Equal products keep the candidate found first.

    A fixed shape takes exactly its rank paths, in its order, whatever the probabilities; a budget cuts that order.
    A path whose rank the drafter left empty is missing, with all below it.

    A token proposed twice under one parent counts once, as the better one.
    Raises ValueError if roots and budgets do not match, roots do not ascend, or a proposal has another number of rows.
    """
    found = grow_scored(drafter, shape, budgets, roots, depths, free=free, ends=ends)
    return {request: grown.tree for request, grown in found.items()}


def grow_scored(
    drafter: LevelProposer,
    shape: TreeShape,
    budgets: Sequence[int],
    roots: Sequence[int],
    depths: Sequence[int] | None = None,
    gate: LevelGate | None = None,
    free: Collection[int] = (),
    ends: Sequence[Collection[int]] | None = None,
) -> dict[int, Grown]:
    """As `grow`, with what a planner needs to compare nodes of several requests, and its say before every level."""
    if len(budgets) != len(roots):
        raise ValueError(f"{len(roots)} roots need as many budgets, got {len(budgets)}; pass one budget per root.")
    if any(a >= b for a, b in pairwise(roots)):
        raise ValueError(f"Batch indexes {list(roots)} do not ascend; sort the requests and name each once.")
    growths: list[_Growth] = []
    for request, budget, last in zip(roots, budgets, ends or [()] * len(roots), strict=True):
        nodes = max(0, min(budget, shape.nodes))
        growths.append(
            _Best(request, last, nodes, shape) if shape.paths is None else _Fixed(request, last, shape.paths[:nodes])
        )
    deepest = dict(zip(roots, [shape.depth] * len(roots) if depths is None else depths, strict=True))
    level = [_Entry(growth, -1, -1, free=growth.request in free) for growth in growths if growth.wants_root]
    proposed = 0
    for depth in range(shape.depth):
        if depth:
            growing = [growth for growth in growths if depth < deepest[growth.request]]
            level = [_Entry(growth, *entry) for growth in growing for entry in growth.next_level(depth)]
            if gate is not None and level:
                level = _admitted(gate, depth, level)
        if not level:
            break
        frontier = _frontier(level, depth)
        proposal = drafter.propose_level(frontier, shape.top_k)
        tokens, log_probs = proposal.tokens.tolist(), proposal.log_probs.tolist()
        if not len(tokens) == len(log_probs) == len(level):
            raise ValueError(
                f"The drafter answered {len(tokens)} rows to a frontier of {len(level)}; it must answer each row once."
            )
        foreseen = [None] * len(level) if proposal.foreseen is None else proposal.foreseen.tolist()
        for row, entry in enumerate(level):
            growth, origin = entry.growth, proposed + row * proposal.tokens.shape[1]
            growth.row, growth.foreseen_below = row, foreseen[row]
            if not entry.free:
                growth.passes_below = depth + 1
            else:
                growth.passes_below = growth.passes[entry.node] if depth else 0
            growth.expand(entry.node, tokens[row], log_probs[row], origin)
        proposed += proposal.tokens.size
    return {growth.request: growth.result() for growth in growths}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of a frontier."""

    growth: _Growth
    node: int
    parent_row: int
    free: bool


def _admitted(gate: LevelGate, depth: int, level: list[_Entry]) -> list[_Entry]:
    """The rows that are worth it, some of them free now."""
    chosen: list[_Entry | None] = [None] * len(level)
    drafted = [at for at, entry in enumerate(level) if not entry.free]
    if drafted:
        unforeseen = [level[at].growth.log_unforeseen(level[at].node) for at in drafted]
        for at, wants in zip(drafted, gate.admit(depth, unforeseen), strict=True):
            chosen[at] = level[at] if wants else None
    known = [at for at, entry in enumerate(level) if chosen[at] is None and entry.growth.foreseen[entry.node] > 0.0]
    if known:
        foreseen = [level[at].growth.log_foreseen(level[at].node) for at in known]
        for at, wants in zip(known, gate.admit_free(depth, foreseen), strict=True):
            chosen[at] = replace(level[at], free=True) if wants else None
    return [entry for entry in chosen if entry is not None]


def _frontier(level: list[_Entry], depth: int) -> Frontier:
    fields = [
        [entry.growth.request for entry in level],
        [entry.node for entry in level],
        [entry.parent_row for entry in level],
        [entry.growth.tokens[entry.node] if entry.node >= 0 else -1 for entry in level],
        [depth] * len(level),
    ]
    free = np.array([entry.free for entry in level]) if any(entry.free for entry in level) else None
    request, node, parent_row, token, depths = np.array(fields, dtype=np.int64)
    return Frontier(request, node, parent_row, token, depths, free)


class _Growth:
    """One request's candidates so far. Candidates are numbered as they are found, hence after their parents."""

    def __init__(self, request: int, ends: Collection[int], wants_root: bool) -> None:
        self.request = request
        self.ends = ends
        self.wants_root = wants_root
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.parent_rows: list[int] = []
        self.origins: list[int] = []
        self.passes: list[int] = []
        self.foreseen: list[float] = []
        # Of the node being expanded: its row in the frontier, its children's passes, and how well they are foreseen.
        self.row = self.passes_below = 0
        self.foreseen_below: list[float] | None = None

    def expand(self, node: int, tokens: list[int], log_probs: list[float], origin: int) -> None:
        """Take in the children proposed for a node; `origin` is the first's."""
        raise NotImplementedError

    def next_level(self, depth: int) -> list[tuple[int, int, bool]]:
        """What to expand next, best first: (node, row of its parent in the last frontier, whether it must be free)."""
        raise NotImplementedError

    def log_unforeseen(self, node: int) -> float:
        """Logarithm of how probably the node is reached and what follows it is not known already."""
        foreseen = self.foreseen[node]
        return self.scores[node] + (math.log1p(-min(foreseen, 0.999999)) if foreseen else 0.0)

    def log_foreseen(self, node: int) -> float:
        """Logarithm of how probably the node is reached and followed by what is known already."""
        return self.scores[node] + math.log(self.foreseen[node])

    def result(self) -> Grown:
        """The finished tree."""
        raise NotImplementedError

    def _add(self, token: int, parent: int, score: float, origin: int, rank: int) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.scores.append(score)
        self.parent_rows.append(self.row)
        self.origins.append(origin + rank)
        self.passes.append(self.passes_below)
        self.foreseen.append(0.0 if self.foreseen_below is None else self.foreseen_below[rank])
        return len(self.tokens) - 1

    def _tree(self, order: Sequence[int]) -> Grown:
        place = {-1: -1}
        for at, node in enumerate(order):
            place[node] = at
        tree = TokenTree(tuple(self.tokens[node] for node in order), tuple(place[self.parents[node]] for node in order))
        of_nodes = zip(*((self.scores[node], self.origins[node], self.passes[node]) for node in order), strict=True)
        return Grown(tree, *(of_nodes if order else ((), (), ())))


class _Best(_Growth):
    """Best-first growth: a heap holds the best `budget` candidates, the worst one on top.

    Entries are (score, -node), so that of equal scores the later node is the worse. A child scores no better than its
    parent and is later, so whatever the heap drops, it drops children first and always holds a tree.
    """

    def __init__(self, request: int, ends: Collection[int], budget: int, shape: TreeShape) -> None:
        super().__init__(request, ends, budget > 0)
        self.budget = budget
        self.width = shape.width
        self.best: list[tuple[float, int]] = []
        self.new: list[int] = []

    def expand(self, node: int, tokens: list[int], log_probs: list[float], origin: int) -> None:
        above = self.scores[node] if node >= 0 else 0.0
        best, budget = self.best, self.budget
        seen: set[int] = set()
        for rank, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
            score = above + min(log_prob, 0.0)
            full = len(best) >= budget
            if not score > (best[0][0] if full else _NO_CANDIDATE):
                return  # the rest of the row is no better; NaN ends here too
            if token in seen:
                continue
            seen.add(token)
            child = self._add(token, node, score, origin, rank)
            if full:
                heapreplace(best, (score, -child))
            else:
                heappush(best, (score, -child))
            if token not in self.ends:
                self.new.append(child)

    def next_level(self, depth: int) -> list[tuple[int, int, bool]]:
        if not self.new:
            return []
        scores, best, passes = self.scores, self.best, self.passes
        # Below a full heap's worst score neither a node nor a child of it is among the best.
        floor = best[0][0] if len(best) >= self.budget else _NO_CANDIDATE
        ready = [node for node in self.new if scores[node] > floor]
        if len(ready) > 1:
            ready.sort(key=scores.__getitem__, reverse=True)
        self.new = []
        # A node below a free row has no state that a forward pass could go on from.
        drafted = [node for node in ready if passes[node] == depth][: self.width]
        free = [node for node in ready if passes[node] < depth and self.foreseen[node] > 0.0][: self.width]
        return [
            *((node, self.parent_rows[node], False) for node in drafted),
            *((node, self.parent_rows[node], True) for node in free),
        ]

    def result(self) -> Grown:
        return self._tree([-node for _, node in sorted(self.best, reverse=True)])


class _Fixed(_Growth):
    """Growth along given rank paths."""

    def __init__(self, request: int, ends: Collection[int], paths: tuple[RankPath, ...]) -> None:
        super().__init__(request, ends, bool(paths))
        self.paths = paths
        self.ranks: dict[RankPath, list[int]] = {}
        for path in paths:
            self.ranks.setdefault(path[:-1], []).append(path[-1])
        self.path_of: dict[int, RankPath] = {-1: ()}
        self.new: list[int] = []

    def expand(self, node: int, tokens: list[int], log_probs: list[float], origin: int) -> None:
        above = self.scores[node] if node >= 0 else 0.0
        path = self.path_of[node]
        for rank in self.ranks[path]:
            if rank < len(tokens) and log_probs[rank] > _NO_CANDIDATE and tokens[rank] not in tokens[:rank]:
                child = self._add(tokens[rank], node, above + min(log_probs[rank], 0.0), origin, rank)
                self.path_of[child] = (*path, rank)
                if tokens[rank] not in self.ends:
                    self.new.append(child)

    def next_level(self, depth: int) -> list[tuple[int, int, bool]]:
        wanted = [node for node in self.new if self.path_of[node] in self.ranks]
        ready = [(node, self.parent_rows[node], self.passes[node] < depth) for node in wanted]
        self.new = []
        return ready

    def result(self) -> Grown:
        node_at = {path: node for node, path in self.path_of.items()}
        return self._tree([node_at[path] for path in self.paths if path in node_at])
