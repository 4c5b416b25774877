"""What requests' next trees are expected to be: how many nodes of what probability, after how many draft passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_specvlm.schedule.plan import CAUGHT_UP, Candidate, Kind

Floats = npt.NDArray[np.float64]
Means = npt.NDArray[np.float32]
"""Exact enough for sums of some thousand nodes; a batch's pass through the processor's caches in half the time."""

DEPTHS = 12
"""Draft passes told apart; the last one stands for all further ones too."""
BINS = 12
_PER_E = 3
"""Bins of probability: so many for a factor of e, the likeliest first. The last one has whatever is below 2.6 %."""
_NODES = DEPTHS * BINS

LEARNING = 5
"""Trees that have to be seen before anything is expected of one."""
_BEGUN = 2
"""What was known before (of a request's kind, or of all kinds) counts as so many trees of its own."""
_REQUEST, _KIND, _ALL = 0.15, 1 / 32, 1 / 32
"""Least weights of the latest tree in what is expected of its request, of its kind, and of anybody."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """Expected of some trees, one a row, or of some sets of trees."""

    values: Means
    """[n, 2 * DEPTHS * BINS + DEPTHS]"""

    @property
    def nodes(self) -> Means:
        """How many there are, [n, DEPTHS, BINS], by the draft passes that they need and by their probability."""
        return self.values[:, :_NODES].reshape(-1, DEPTHS, BINS)

    @property
    def accepted(self) -> Means:
        """The sums of their probabilities, [n, DEPTHS, BINS]."""
        return self.values[:, _NODES : 2 * _NODES].reshape(-1, DEPTHS, BINS)

    @property
    def rows(self) -> Means:
        """Of each draft pass, [n, DEPTHS]."""
        return self.values[:, 2 * _NODES :]

    def first(self, order: Sequence[int], counts: Sequence[int]) -> Prospect:
        """The sets of the first so many trees in this order; `counts` ascend."""
        between = np.add.reduceat(self.values[order[: counts[-1]]], [0, *counts[:-1]], axis=0)
        return Prospect(between.cumsum(axis=0))


class Outlooks:
    """Running means of each request's trees. They begin as those of its kind (see `plan.Kind`), and those as all's."""

    def __init__(self) -> None:
        """Nothing was seen."""
        self._table = np.zeros((16, 2 * _NODES + DEPTHS), dtype=np.float32)
        self._free = list(range(1, len(self._table)))
        # Of requests by id, of kinds, and of all under None.
        self._row: dict[str | Kind | None, int] = {None: 0}
        self._seen = np.zeros(len(self._table), dtype=np.int64)
        """Trees by row."""

    @property
    def ready(self) -> bool:
        """Whether enough trees were seen to expect anything."""
        return bool(self._seen[0] >= LEARNING)

    def seldom(self, candidates: Sequence[Candidate], among: Sequence[int]) -> list[int]:
        """Of these indices theirs of whose kind less was seen."""
        kinds = {candidates[i].kind for i in among}
        seldom = {kind for kind in kinds if kind not in self._row or self._seen[self._row[kind]] < LEARNING}
        return [i for i in among if candidates[i].kind in seldom]

    def of(self, candidates: Sequence[Candidate]) -> Prospect:
        """The next tree of each of these requests, once some trees were seen.

        Its first pass computes the request's backlog; of one that has to be read first, which is priced apart, what a
        tree will leave behind: its accepted tokens and the bonus token.
        """
        row = self._row
        found = Prospect(self._table[[row.get(each.request_id, row.get(each.kind, 0)) for each in candidates]])
        behind = np.array([each.backlog for each in candidates])
        if (unread := behind > CAUGHT_UP).any():
            behind = np.where(unread, np.minimum(found.accepted.sum(axis=(1, 2)) + 1, CAUGHT_UP), behind)
        found.rows[:, 0] *= behind + 1
        return found

    def knows(self, request_id: str) -> bool:
        """Whether it had a tree."""
        return request_id in self._row

    def learn(self, candidates: Sequence[Candidate], trees: Prospect) -> None:
        """These requests' trees, one a row."""
        members: dict[Kind, list[int]] = {}
        for i, candidate in enumerate(candidates):
            members.setdefault(candidate.kind, []).append(i)
        total = np.add.reduce(trees.values)
        self._follow(0, total, len(candidates), 0, _ALL)
        for kind, its in members.items():
            of_kind = np.add.reduce(trees.values[its]) if len(members) > 1 else total
            self._follow(self._row_of(kind, None), of_kind, len(its), _BEGUN, _KIND)
        rows = np.array([self._row_of(each.request_id, each.kind) for each in candidates])
        seen = self._seen[rows] + 1
        self._seen[rows] = seen
        means = self._table[rows]
        news = trees.values - means
        news *= np.maximum(1 / (seen + _BEGUN), _REQUEST)[:, None]
        self._table[rows] = means + news

    def forget(self, request_id: str) -> None:
        """The request is over."""
        if (row := self._row.pop(request_id, None)) is not None:
            self._seen[row] = 0
            self._free.append(row)

    def _row_of(self, key: str | Kind, like: Kind | None) -> int:
        """Its row of the table; if it has none yet, a new one that begins as what it is like."""
        row = self._row.get(key)
        if row is None:
            if not self._free:
                self._free = list(range(len(self._table), 2 * len(self._table)))
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
                self._seen = np.concatenate([self._seen, np.zeros_like(self._seen)])
            row = self._row[key] = self._free.pop()
            self._table[row] = self._table[self._row[like]]
        return row

    def _follow(self, row: int, total: Means, trees: int, begun: int, least: float) -> None:
        """The sum of so many trees of one step; `least` is the least weight of each."""
        self._seen[row] = seen = int(self._seen[row]) + trees
        weight = max(trees / (seen + begun), 1 - (1 - least) ** trees)
        mean = self._table[row]
        mean += weight * (total / trees - mean)


def prospect(
    score: Floats,
    depth: npt.NDArray[np.int64],
    tree: npt.NDArray[np.int64],
    trees: int,
    rows: Sequence[float],
) -> Prospect:
    """Trees that were grown; one row of the first pass for each that had one (see `Outlooks.of`).

    Args:
        score: of all their nodes, the log-probabilities of being accepted.
        depth: of each node, the draft passes that it needed; one that needs none counts as behind the first.
        tree: whose it is, from 0 on.
        trees: how many there are.
        rows: of the later ones, for all trees together; theirs who have nodes behind a pass,
            and everybody's if nobody has.
    """
    values = np.zeros((trees, 2 * _NODES + DEPTHS), dtype=np.float32)
    bins = np.minimum(-_PER_E * score, BINS - 1).astype(np.int64)
    at = (tree * DEPTHS + np.minimum(np.maximum(depth, 1), DEPTHS) - 1) * BINS + bins
    values[:, :_NODES] = np.bincount(at, minlength=trees * _NODES).reshape(trees, _NODES)
    values[:, _NODES : 2 * _NODES] = np.bincount(at, np.exp(score), trees * _NODES).reshape(trees, _NODES)
    found = Prospect(values)
    behind = found.nodes.sum(axis=2)
    whole = behind.sum(axis=0)
    shares = np.where(whole > 0.0, behind / np.maximum(whole, 1.0), 1.0 / trees)
    found.rows[:, 0] = np.bincount(tree[depth == 0], minlength=trees) == 0
    for level, count in enumerate(rows, start=1):
        last = min(level, DEPTHS - 1)
        found.rows[:, last] += count * shares[:, last]
    return found
