"""The goodput planner: how much to speculate in each step, nothing included.

Goodput is tokens per second of the whole batch. With B requests, candidate nodes of acceptance probability a_v, of
which M are verified, and L draft passes over r_l rows,

    G = (B + sum of the M largest a_v) / (sum of T_draft(r_l) + T_overhead + T_tree(B + M)),   G_plain = B / T_plain(B).

At the optimum every marginal obeys dA > G dT (Dinkelbach 1967), which gives the rule for one more level. The cost
terms are those of SmartSpec (arXiv 2406.14066, section 4) with trees and measured curves; CAST (arXiv 2510.26577) and
OPT-Tree (arXiv 2406.17276) have hand-set prices in the place of G.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.plan import Candidate, Mode, Plan

Floats = npt.NDArray[np.float64]

_MEMORY = 32
"""Trees remembered: what the next ones are expected to be worth."""
_LEARNING = 5
"""Trees needed for an expectation; so many looks are taken before any time was earned for them, and paid afterwards."""
_MARGIN = 1.05
"""Speculation starts where it promises 5 % more than plain decoding (the draft has to read prompts first, and small
promises are as often wrong as right), and goes on where it promises anything."""
_LOOK_SHARE = 0.01
"""Share of the time of plain steps that may be lost by looking whether speculation would pay."""
_PLAIN_EVERY = 128
"""Steps with trees after which a plain step refreshes what plain decoding costs here."""
_PLAIN_SEEN = 3
_PLAIN_SOON = 8
"""The same while fewer than three plain steps of half to twice as many requests were seen, or asked for in vain: steps
with prompts in them cannot be told apart."""
_PROBE_NODES = 4
_CAUGHT_UP = 8
"""Rows of backlog that a step leaves behind at most: a request with more has to be read first."""
_TRUST_WEIGHT = 0.1
"""Weight of one step in what promises are worth, from 16 requests on; fewer say proportionally less, as one
request's accepted tokens vary by half their mean."""
_FORGIVEN = 1 / 2048
"""Share of its distance from 1 that trust loses in a plain step, of 16 requests on and fewer in proportion: so little
against the weight above that steps which do not pay are tried again in one of a hundred."""
_RATIO = 0.6
"""Of what a level adds, for each node expanded above it, to how probable those are: before any was tried."""
_UNLEARNING = 0.01
"""Share of its distance from the start that the ratio of a level loses in a step in which nobody tried the level."""
_REMEMBER_FOR = 8
"""Steps an expectation is used before it is computed anew."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    probabilities: Floats
    """Acceptance probabilities of all grown nodes, descending."""
    depths: npt.NDArray[np.int64]
    """The draft passes that each needed."""
    rows: tuple[float, ...]
    """Rows of each draft pass, this request's share."""


class Planner:
    """Plans steps from cost curves and from what the last trees were worth. The same calls give the same plans.

    One step: `plan`, then `fed`, `admit` before each deeper level while trees grow, and `cut`. Before the next one,
    `achieved` tells what it came to.
    """

    def __init__(self, costs: Costs) -> None:
        """`costs` are shared: whoever measures goes on observing them."""
        self.costs = costs
        self.overhead = 1e-3
        """Seconds of drafting outside draft passes, per step; kept by whoever measures."""
        self._memory: deque[_Remembered] = deque(maxlen=_MEMORY)
        self._credit = self._price = 0.0
        self._since_plain = 0
        self._refreshed: dict[int, int] = {}
        self._speculating = False
        self._promised = 0.0
        self._trust: dict[int, float] = {}
        self._expected: dict[tuple[int, tuple[float, ...]], tuple[float, int]] = {}
        self._ratio = np.full(128, _RATIO)
        self._requests = self._looks = self._steps = 0
        self._goal = 0.0
        self._mode = Mode.PLAIN
        self._rows: list[int] = []
        self._usual = 0
        self._frontier: dict[int, float] = {}

    # -- before drafting -----------------------------------------------------------------------------------------

    def plan(self, requests: int, candidates: Sequence[Candidate]) -> Plan:
        """Whom to draft for, in a batch of `requests` that decode."""
        self._requests = requests
        self._steps += 1
        self._frontier = {}
        self._promised = 0.0
        if not candidates:
            return self._nothing()
        plain = requests / self.costs.plain.at(requests)
        chosen = self._worth_feeding(requests, candidates, plain)
        promised = self._expect(requests, [candidates[i].share for i in chosen]) if chosen else 0.0
        expected = promised * self._trust_at(requests)
        self._speculating = bool(chosen) and expected > plain * (1.0 if self._speculating else _MARGIN)
        if self._speculating:
            self._since_plain += 1
            asked = sum(times for many, times in self._refreshed.items() if requests <= 2 * many <= 4 * requests)
            known = max(self.costs.plain.seen_near(requests), asked) >= _PLAIN_SEEN
            if self._since_plain < (_PLAIN_EVERY if known else _PLAIN_SOON):
                self._promised = promised
                return self._draft(Mode.TREES, expected, chosen, candidates)
            self._since_plain = 0
            self._refreshed[requests] = self._refreshed.get(requests, 0) + 1
            return self._nothing()
        if (size := self._nearest_size(requests)) is not None:
            self._trust[size] += _FORGIVEN * min(requests / 16, 1.0) * (1.0 - self._trust[size])
        return self._probe(requests, candidates, plain)

    def _draft(self, mode: Mode, goal: float, chosen: Sequence[int], candidates: Sequence[Candidate]) -> Plan:
        self._mode, self._goal = mode, goal
        self._rows = [sum(candidates[i].backlog + 1 for i in chosen)]
        # What a first pass has once a request has caught up: the tokens of one step.
        self._usual = sum(min(candidates[i].backlog + 1, _CAUGHT_UP) for i in chosen)
        return Plan(mode, tuple(chosen))

    def _worth_feeding(self, requests: int, candidates: Sequence[Candidate], plain: float) -> list[int]:
        """Candidates whose answer is expected to repay what the drafter must compute first.

        Of those whose trees are worth a share of others' only the ones with which the batch would do better than plain
        if all trees were worth that little.
        """
        if len(self._memory) < _LEARNING:
            return []
        trust = self._trust_at(requests)
        shares = {candidate.share for candidate in candidates}
        worth = {share: self._expect(requests, [share] * len(candidates)) * trust for share in shares}
        rows = sum(c.backlog for c in candidates)
        row = self.costs.feed.at(rows) / rows if rows else 0.0

        def repays(candidate: Candidate) -> bool:
            expected = worth[candidate.share]
            saved = requests / plain - requests / max(expected, 1e-9)
            # `saved` is seconds per token of every request; one request's share of the batch's time is 1 / requests.
            fed = candidate.backlog <= _CAUGHT_UP or candidate.remaining * saved / requests > row * candidate.backlog
            return fed and (candidate.share == 1.0 or expected > plain)

        return [i for i, candidate in enumerate(candidates) if repays(candidate)]

    def _probe(self, requests: int, candidates: Sequence[Candidate], plain: float) -> Plan:
        """Look at one request's tree, unless what earlier looks lost has not been earned since."""
        if self._looks >= _LEARNING and self._credit < 0.0:
            return self._nothing()
        # Another one every time, as one request's trees are not the traffic's; every second time the one that is fed
        # at the least cost, as reading a prompt takes as long as many looks.
        asked = [i for i, candidate in enumerate(candidates) if candidate.typical] or range(len(candidates))
        first = self._looks // 2 % len(asked)
        order = [*asked[first:], *asked[:first]]
        i = min(order, key=lambda i: _dear(candidates[i])) if self._looks % 2 else order[0]
        self._looks += 1
        price = self.costs.feed.at(candidates[i].backlog + 1) + 3 * self.costs.draft.at(4) + self.overhead
        price += max(self.costs.tree.at(requests + _PROBE_NODES) - self.costs.plain.at(requests), 0.0)
        self._credit -= price
        self._price = price
        return self._draft(Mode.PROBE, plain, [i], candidates)

    def _nothing(self) -> Plan:
        self._mode, self._goal, self._rows, self._usual = Mode.PLAIN, 0.0, [], 0
        return Plan(Mode.PLAIN, ())

    def _expect(self, requests: int, shares: Sequence[float]) -> float:
        """Best goodput of a step of `requests`, some of which have trees like those remembered.

        A node's probability is that of all conditions on its path, and so `shares`, one for each tree (see
        `Candidate`), count once for each level.
        """
        asked = requests, tuple(sorted(round(share, 1) for share in shares))
        known = self._expected.get(asked)
        if known is not None and self._steps < known[1]:
            return known[0]
        trees = len(shares)
        scale = trees / len(self._memory)
        probabilities = np.concatenate([tree.probabilities for tree in self._memory])
        depths = np.concatenate([tree.depths for tree in self._memory])
        if min(asked[1]) < 1.0:
            levels = np.arange(int(depths.max(initial=0)) + 1)
            probabilities = probabilities * np.mean([share**levels for share in asked[1]], axis=0)[depths]
        order = np.argsort(-probabilities, kind="stable")
        probabilities, depths = probabilities[order], depths[order]
        deepest = max(len(tree.rows) for tree in self._memory)
        rows = np.array(
            [sum(t.rows[level] for t in self._memory if level < len(t.rows)) for level in range(deepest)],
            dtype=np.float64,
        )
        passes = self.costs.draft.over(np.maximum(rows * scale, 1.0).astype(np.float64))
        passes[0] = self.costs.feed.at(max(round(rows[0] * scale), 1))
        drafted = np.cumsum(passes) + self.overhead
        best = 0.0
        for depth in range(1, deepest + 1):
            inside = probabilities[depths <= depth]
            nodes = np.arange(1, len(inside) + 1) * scale
            goodput = (requests + np.cumsum(inside) * scale) / (
                drafted[depth - 1] + self.costs.tree.over((requests + nodes).astype(np.float64))
            )
            best = max(best, float(goodput.max(initial=0.0)))
        if len(self._expected) > 256:
            self._expected.clear()
        self._expected[asked] = (best, self._steps + _REMEMBER_FOR)
        return best

    # -- while drafting ------------------------------------------------------------------------------------------

    def fed(self, rows: int) -> None:
        """The first draft pass had so many rows; it may not have caught up with everybody."""
        self._rows[:1] = [rows]

    def layout(self, trees: int, depth: int, width: int) -> tuple[int, ...] | None:
        """How many nodes of each tree to expand in each level, decided before the first one is drafted.

        It is what `admit` would say of trees like those remembered, level by level, until it says nothing: for drafters
        whose levels are queued one after the other with nobody looking.

        Args:
            trees: that will be grown.
            depth: levels at most.
            width: nodes of a tree in a level at most.

        Returns:
            The roots' level first, which has one; None for a probe, which has to look.
        """
        if self._mode is not Mode.TREES:
            return None
        scale, widths = trees / len(self._memory), [1]
        for level in range(1, depth):
            reach = np.concatenate([tree.probabilities[tree.depths == level][:width] for tree in self._memory])
            ratio, each, whole = self._prices(level, max(round(len(reach) * scale), 1))
            wanted = reach[ratio * reach > each]
            if ratio * float(wanted.sum()) * scale <= whole + each * len(wanted) * scale:
                break
            widths.append(min(width, math.ceil(len(wanted) / len(self._memory))))
        return tuple(widths)

    def passed(self, depth: int, rows: int, reach: float) -> None:
        """A level of a `layout` was drafted: rows of its pass, and the sum of its nodes' probabilities."""
        self._rows.append(rows)
        self._frontier[depth] = reach

    def admit(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Nodes worth another level (see `tree.grow.LevelGate`): what it should add against what it costs."""
        # In plain Python: levels are small, and calls of numpy would take longer than the work.
        reach = [math.exp(score) for score in scores]
        ratio, each, whole = self._prices(depth, len(reach))
        wanted = [ratio * probability > each for probability in reach]
        count, reached = sum(wanted), sum(compress(reach, wanted))
        if ratio * reached <= whole + each * count:
            return [False] * len(reach)
        self.passed(depth, count, reached)
        return wanted

    def _prices(self, depth: int, rows: int) -> tuple[float, float, float]:
        """What the children of a node of this level add in proportion to its probability, and the tokens that have to
        come for a row of the level and for the level itself."""
        costs, verified, ahead = self.costs, self._requests + rows, max(rows, 8)
        node = (costs.tree.at(verified + ahead) - costs.tree.at(verified)) / ahead
        row = (costs.draft.at(rows + 8) - costs.draft.at(rows)) / 8
        ratio = float(self._ratio[min(depth, len(self._ratio) - 1)])
        return ratio, self._goal * (row + node), self._goal * costs.draft.at(1)

    def admit_free(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Nodes whose next one is known already (see `tree.grow.LevelGate`): worth it if verifying that one is."""
        verified = self._requests + len(scores)
        node = (self.costs.tree.at(verified + 8) - self.costs.tree.at(verified)) / 8
        return [math.exp(score) > self._goal * node for score in scores]

    # -- after drafting ------------------------------------------------------------------------------------------

    def cut(self, trees: Sequence[tuple[Sequence[float], Sequence[int]]], typical: Sequence[bool]) -> list[int]:
        """How many nodes of each tree to verify, the best first.

        Args:
            trees: per tree its nodes' log-probabilities of being accepted, descending, and the draft passes that each
                needed, which is its depth where nothing was known without.
            typical: per tree whether it tells what others will be worth (see `Candidate`).
        """
        probabilities = [np.exp(np.asarray(scores, dtype=np.float64)) for scores, _ in trees]
        depths = [np.asarray(levels, dtype=np.int64) for _, levels in trees]
        self._remember(probabilities, depths, typical)
        if 2 * sum(typical) < len(typical):  # the promise was for trees of the usual size
            self._promised = 0.0
        pooled = np.concatenate([np.zeros(0), *probabilities])
        if not len(pooled):
            return [0] * len(trees)
        order = np.sort(pooled)[::-1]
        nodes = np.arange(len(order) + 1)
        seconds = self.costs.tree.over(self._requests + nodes.astype(np.float64))
        seconds[0] = self.costs.plain.at(self._requests)
        drafted = sum(self.costs.draft.at(rows) for rows in self._rows[1:]) + self.overhead
        drafted += sum(self.costs.feed.at(rows) for rows in self._rows[:1] if rows)
        goodput = (self._requests + np.concatenate(([0.0], np.cumsum(order)))) / (drafted + seconds)
        count = int(goodput.argmax())
        if self._mode is Mode.PROBE:
            count = max(count, min(_PROBE_NODES, len(order)))
        if not count:
            return [0] * len(trees)
        floor = order[count - 1]
        kept = [int((p > floor).sum()) for p in probabilities]
        spare = count - sum(kept)
        for i, p in enumerate(probabilities):  # of equal ones, the earlier requests'
            more = min(spare, int((p == floor).sum()))
            kept[i] += more
            spare -= more
        self._learn_ratio(probabilities, depths, kept)
        return kept

    def _remember(
        self, probabilities: Sequence[Floats], depths: Sequence[npt.NDArray[np.int64]], typical: Sequence[bool]
    ) -> None:
        share = tuple(rows / max(len(probabilities), 1) for rows in (self._usual, *self._rows[1:]))
        for p, d, tells in zip(probabilities, depths, typical, strict=True):
            if tells or len(self._memory) < _LEARNING:
                self._memory.append(_Remembered(p, d, share))

    def _learn_ratio(
        self, probabilities: Sequence[Floats], depths: Sequence[npt.NDArray[np.int64]], kept: Sequence[int]
    ) -> None:
        """What levels add for each expanded node above: only nodes that are verified add anything."""
        for depth, reach in self._frontier.items():
            below = sum(
                float(p[:n][d[:n] == depth + 1].sum()) for p, d, n in zip(probabilities, depths, kept, strict=True)
            )
            self._ratio[depth] += 0.1 * (min(below / reach, 1.0) - self._ratio[depth])
        # A level that is not drafted any more must be tried again.
        asked = list(self._frontier)
        kept_ratios = self._ratio[asked]
        self._ratio += _UNLEARNING * (_RATIO - self._ratio)
        self._ratio[asked] = kept_ratios

    def achieved(self, requests: int, tokens: float, seconds: float) -> None:
        """What was last planned, its drafting and the step after, gave `requests` so many tokens in so much time.

        Without the time for prompts, which the formula does not know; but with that in which the draft read them. A
        step in which fewer requests were left than planned for tells nothing.
        """
        if self._mode is Mode.PLAIN:
            self._credit += _LOOK_SHARE * seconds
        elif self._mode is Mode.PROBE:
            lost = seconds - tokens * self.costs.plain.at(requests) / requests
            # A moment in which the machine was busy is no price.
            self._credit += self._price - min(lost, 2 * self._price)
        self._credit = min(self._credit, 2 * self._price)
        if self._promised and requests == self._requests:
            weight = _TRUST_WEIGHT * min(requests / 16, 1.0)
            trust = self._trust_at(requests)
            kept = min(tokens / seconds / self._promised, 2.0)
            self._trust[requests.bit_length()] = trust + weight * (kept - trust)

    def _trust_at(self, requests: int) -> float:
        """What promises are worth in batches of about this size: those of the nearest size known, 1 before any."""
        size = self._nearest_size(requests)
        return 1.0 if size is None else self._trust[size]

    def _nearest_size(self, requests: int) -> int | None:
        size = requests.bit_length()
        return min(self._trust, key=lambda known: abs(known - size), default=None)


def _dear(candidate: Candidate) -> int:
    """Rows to be read before a request can be looked at, 0 if it has caught up but for the last step's."""
    return candidate.backlog if candidate.backlog > _CAUGHT_UP else 0
