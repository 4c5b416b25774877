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
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, compress

import numpy as np
import numpy.typing as npt

from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.looks import Looks
from vllm_specvlm.schedule.outlooks import DEPTHS, Outlooks, Prospect, prospect
from vllm_specvlm.schedule.plan import Candidate, Mode, Plan

Floats = npt.NDArray[np.float64]

_MARGIN = 1.05
"""Speculation starts where it promises 5 % more than plain decoding (the draft has to read prompts first, and small
promises are as often wrong as right), and goes on where it promises anything."""
_PLAIN_EVERY = 128
"""Steps with trees after which a plain step refreshes what plain decoding costs here."""
_PLAIN_SEEN = 3
_PLAIN_SOON = 8
"""The same while fewer than three plain steps of half to twice as many requests were seen (or were asked for and met a
prompt, so that they taught nothing), and where the last one lay far off. The first one is asked for at once: what was
measured at the start may have met a busy machine."""
_PROBE_NODES = 4
_SETS = 4
"""Sets of requests that are compared: a quarter of those worth a tree, the best ones, a half, and so on."""
_TRUST_WEIGHT = 0.1
"""Least weight of one step in what promises are worth, from 16 requests on; fewer say proportionally less, as one
request's accepted tokens vary by half their mean."""
_BELIEVED = 32
"""At first promises are believed as if so many steps had kept them."""
_FORGIVEN = 1 / 2048
"""Share of its distance from 1 that trust loses in a plain step, of 16 requests on and fewer in proportion: so little
against the weight above that steps which do not pay are tried again in one of a hundred."""
_RATIO = 0.9
"""Of what a level adds, for each node expanded above it, to how probable those are: before any was tried. A level that
adds less is tried and known; one that is thought to add less, where rows are dear, never is."""
_UNLEARNING = 0.01
"""Share of its distance from the start that the ratio of a level loses in a step in which nobody tried the level."""


class Planner:
    """Plans steps from cost curves and from what requests' last trees were worth. The same calls give the same plans.

    One step: `plan`, then `admit` before each deeper level while trees grow, and `cut`. Before the next one,
    `achieved` tells what it came to.
    """

    def __init__(self, costs: Costs) -> None:
        """`costs` are shared: whoever measures goes on observing them."""
        self.costs = costs
        self.overhead = 1e-3
        """Seconds of drafting outside draft passes, per step; kept by whoever measures."""
        self._outlooks = Outlooks()
        self._looks = Looks()
        self._since_plain = 0
        self._refreshed: dict[int, int] = {}
        self._speculating = False
        self._promised = self._reading = 0.0
        self._plain = self._missing = 0.0
        self._trust: dict[int, float] = {}
        self._kept: Counter[int] = Counter()
        self._ratio = np.full(128, _RATIO)
        self._requests = 0
        self._goal = 0.0
        self._mode = Mode.PLAIN
        self._chosen: list[Candidate] = []
        self._rows: list[int] = []
        self._frontier: dict[int, float] = {}

    def forget(self, request_id: str) -> None:
        """The request is over."""
        self._outlooks.forget(request_id)

    # -- before drafting -----------------------------------------------------------------------------------------

    def plan(self, requests: int, candidates: Sequence[Candidate]) -> Plan:
        """Whom to draft for, in a batch of `requests` that decode."""
        self._requests = requests
        self._frontier = {}
        self._promised = 0.0
        if not candidates:
            return self._nothing()
        self._plain, self._missing = self.costs.plain.at(requests), self.costs.missing(requests)
        plain = requests / self._plain
        trust = self._trust_at(requests)
        chosen, promised = self._choose(requests, candidates, plain, trust)
        expected = promised * trust
        self._speculating = expected > plain * (1.0 if self._speculating else _MARGIN)
        if self._speculating:
            self._since_plain += 1
            asked = sum(times for many, times in self._refreshed.items() if requests <= 2 * many <= 4 * requests)
            known = max(self.costs.plain.seen_between(math.ceil(requests / 2), 2 * requests), asked)
            sure = known >= _PLAIN_SEEN and not self.costs.plain.doubted(requests)
            if known and self._since_plain < (_PLAIN_EVERY if sure else _PLAIN_SOON):
                self._promised = promised
                return self._draft(Mode.TREES, expected, self._with_look(chosen, candidates), candidates)
            self._since_plain = 0
            self._refreshed[requests] = self._refreshed.get(requests, 0) + 1
            return self._nothing()
        if (size := self._tried(requests)) is not None:
            self._trust[size] += _FORGIVEN * min(requests / 16, 1.0) * (1.0 - self._trust[size])
        everybody = range(len(candidates))
        looked = self._looks.next(candidates, self._outlooks.seldom(candidates, everybody) or everybody)
        if looked is None:
            return self._nothing()
        price = self.costs.feed.at(candidates[looked].backlog + 1) + 3 * self.costs.draft.at(4) + self.overhead
        price += self._step(requests + _PROBE_NODES) - self._plain
        self._looks.take(price)
        return self._draft(Mode.PROBE, plain, [looked], candidates)

    def _step(self, rows: int) -> float:
        """Seconds of a step with trees by its rows; never less than a plain one's of the same requests."""
        return max(self.costs.tree.at(rows) + self._missing, self._plain)

    def _steps(self, rows: Floats) -> Floats:
        """`_step` of each, float64 [...]."""
        seconds: Floats = np.maximum(self.costs.tree.over(rows) + self._missing, self._plain)
        return seconds

    def _draft(self, mode: Mode, goal: float, chosen: Sequence[int], candidates: Sequence[Candidate]) -> Plan:
        self._mode, self._goal = mode, goal
        self._chosen = [candidates[i] for i in chosen]
        self._rows = []
        rows = sum(each.backlog + 1 for each in self._chosen)
        unread = sum(each.unread for each in self._chosen if not self._outlooks.knows(each.request_id))
        self._reading = self.costs.feed.at(rows) - self.costs.feed.at(rows - unread)
        return Plan(mode, tuple(chosen))

    def _nothing(self) -> Plan:
        self._mode, self._goal, self._chosen, self._rows = Mode.PLAIN, 0.0, [], []
        return Plan(Mode.PLAIN, ())

    def _with_look(self, chosen: Sequence[int], candidates: Sequence[Candidate]) -> list[int]:
        """Those chosen, and now and then one that was left out: beside others it costs little more than its rows.

        A prompt is read for that where its kind was seldom seen, or where there is nobody else to look at.
        """
        left_out = sorted(set(range(len(candidates))) - set(chosen))
        caught_up = [i for i in left_out if not candidates[i].unread]
        looked = self._looks.next(candidates, self._outlooks.seldom(candidates, left_out) or caught_up or left_out)
        if looked is None:
            return sorted(chosen)
        rows = candidates[looked].backlog + 1
        beside = sum(candidates[i].backlog + 1 for i in chosen)
        together = self.costs.feed.at(beside + rows)
        # Where further rows are free, its share of them all the same: it would have a tree in every step.
        price = max(together - self.costs.feed.at(beside), together * rows / (beside + rows))
        price += 3 * (self.costs.draft.at(len(chosen) + 4) - self.costs.draft.at(len(chosen)))
        self._looks.take(price)
        return sorted([*chosen, looked])

    def _choose(
        self, requests: int, candidates: Sequence[Candidate], plain: float, trust: float
    ) -> tuple[list[int], float]:
        """The best set of requests to draft for, and the goodput that it promises; none where nothing is expected."""
        if not self._outlooks.ready:
            return [], 0.0
        prospects = self._outlooks.of(candidates)
        if len(candidates) == 1 and not candidates[0].unread:  # nobody to compare it with, and nothing to repay
            return [0], float(self._goodput(requests, prospects)[0])
        worth = self._worth(requests, prospects, plain)
        order = [int(i) for i in np.argsort(-worth, kind="stable") if worth[i] > 0.0]
        if not order:
            return [], 0.0
        counts = sorted({math.ceil(len(order) * part / _SETS) for part in range(1, _SETS + 1)})
        goodput = self._goodput(requests, prospects.first(order, counts))
        best = int(goodput.argmax())
        chosen, promised = order[: counts[best]], float(goodput[best])
        unread = sum(candidates[i].unread for i in chosen)
        if unread:
            # What a step gains over plain decoding, in tokens, is each request's by what its tree is worth.
            accepted = prospects.accepted.sum(axis=(1, 2))
            seconds = (requests + float(accepted[chosen].sum())) / (promised * trust)
            gained = seconds * (promised * trust - plain) / float(worth[chosen].sum())
            row = plain * self.costs.feed.at(unread) / unread

            def repays(i: int) -> bool:
                steps = candidates[i].remaining / (1.0 + float(accepted[i]))
                return not candidates[i].unread or worth[i] * gained * steps > row * candidates[i].unread

            read = [i for i in chosen if repays(i)]
            if len(read) < len(chosen):
                promised = float(self._goodput(requests, prospects.first(read, [len(read)]))[0]) if read else 0.0
                chosen = read
        return chosen, promised

    def _worth(self, requests: int, trees: Prospect, goal: float) -> Floats:
        """Of each tree the accepted tokens less those that its rows cost, [n]; of nodes that pay.

        At the price of one node of each, or of eight if those are cheaper apiece: what a step with trees costs besides
        is shared by all nodes, and with more of them nodes may be dearer, which is for the goodput to say. A row of a
        first pass has a price of its own, as only the roots' are scored there.
        """
        costs, count = self.costs, len(trees.values)
        node = goal * min((self._step(requests + n) - self._plain) / n for n in (count, 8 * count))
        row = goal * (costs.draft.at(count + 8) - costs.draft.at(count)) / 8
        first = max(round(float(trees.rows[:, 0].sum())), 1)
        behind = goal * (costs.feed.at(first + count) - costs.feed.at(first)) / count
        gains = trees.accepted - node * trees.nodes
        rows = behind * trees.rows[:, 0] + row * trees.rows[:, 1:].sum(axis=1)
        worth: Floats = np.maximum(gains, 0.0).sum(axis=(1, 2)) - rows
        return worth

    def _goodput(self, requests: int, sets: Prospect) -> Floats:
        """The best of a step of `requests` with each of these sets of trees, [n]: as deep and as many nodes as pay."""
        nodes = sets.nodes.cumsum(axis=1).cumsum(axis=2)
        tokens = requests + sets.accepted.cumsum(axis=1).cumsum(axis=2)
        # A pass that is wanted in some steps only has a part of a row in the mean.
        rows, wanted = np.maximum(sets.rows, 1.0), np.minimum(sets.rows, 1.0)
        passes = self.costs.draft.over(rows)
        passes[:, 0] = [self.costs.feed.at(round(first)) for first in rows[:, 0].tolist()]
        passes *= wanted
        drafted = passes.cumsum(axis=1) + self.overhead
        goodput = tokens / (drafted[:, :, None] + self._steps(requests + nodes))
        best: Floats = goodput.max(axis=(1, 2))
        return best

    # -- while drafting ------------------------------------------------------------------------------------------

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
        usual = self._outlooks.of(self._chosen)
        scale = trees / len(usual.values)
        nodes, accepted = usual.nodes.sum(axis=0) * scale, usual.accepted.sum(axis=0) * scale
        widths = [1]
        for level in range(1, min(depth, DEPTHS)):
            found = nodes[level - 1] > 0.0
            reach = accepted[level - 1][found] / nodes[level - 1][found]
            ratio, each, whole = self._prices(level, max(round(float(nodes[level - 1].sum())), 1))
            wanted = found.copy()
            wanted[found] = ratio * reach > each
            count, reached = float(nodes[level - 1][wanted].sum()), float(accepted[level - 1][wanted].sum())
            if ratio * reached <= whole + each * count:
                break
            widths.append(min(width, math.ceil(count / trees)))
        return tuple(widths)

    def passed(self, depth: int, rows: int, reach: float) -> None:
        """A level of a `layout` was drafted: rows of its pass, and the sum of its nodes' probabilities."""
        self._rows.append(rows)
        if reach > 0.0:  # not of a level that was laid out and found no node
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
        node = (self._step(verified + ahead) - self._step(verified)) / ahead
        row = (costs.draft.at(rows + 8) - costs.draft.at(rows)) / 8
        ratio = float(self._ratio[min(depth, len(self._ratio) - 1)])
        return ratio, self._goal * (row + node), self._goal * costs.draft.at(1)

    def admit_free(self, depth: int, scores: Sequence[float]) -> Sequence[bool]:
        """Nodes whose next one is known already (see `tree.grow.LevelGate`): worth it if verifying that one is."""
        verified = self._requests + len(scores)
        node = (self._step(verified + 8) - self._step(verified)) / 8
        return [math.exp(score) > self._goal * node for score in scores]

    # -- after drafting ------------------------------------------------------------------------------------------

    def cut(self, trees: Mapping[int, tuple[Sequence[float], Sequence[int]]]) -> list[int]:
        """How many nodes of each tree to verify, the best first: as many as are worth the time by the plan's goodput.

        Args:
            trees: by index among those chosen, of each tree its nodes' log-probabilities of being accepted, descending,
                and the draft passes that each needed, which is its depth where nothing was known without, and 0 where
                all was.
        """
        if not trees:
            return []
        score = np.fromiter(chain.from_iterable(scores for scores, _ in trees.values()), dtype=np.float64)
        depth = np.fromiter(chain.from_iterable(passes for _, passes in trees.values()), dtype=np.int64)
        tree = np.repeat(np.arange(len(trees)), [len(scores) for scores, _ in trees.values()])
        grown = [self._chosen[i] for i in trees]
        self._outlooks.learn(grown, prospect(score, depth, tree, len(grown), self._rows))
        order = np.argsort(-score, kind="stable")  # of equal ones the earlier requests' first
        probability = np.exp(score[order])
        seconds = self._steps(self._requests + np.arange(len(order) + 1, dtype=np.float64))
        seconds[0] = self._plain
        count = int((np.concatenate(([0.0], np.cumsum(probability))) - self._goal * seconds).argmax())
        if self._mode is Mode.PROBE:
            count = max(count, min(_PROBE_NODES, len(order)))
        self._learn_ratio(probability[:count], depth[order[:count]])
        return np.bincount(tree[order[:count]], minlength=len(trees)).tolist()

    def _learn_ratio(self, probability: Floats, depth: npt.NDArray[np.int64]) -> None:
        """What levels add for each expanded node above: only nodes that are verified, which these are, add anything."""
        for level, reach in self._frontier.items():
            below = float(probability[depth == level + 1].sum())
            self._ratio[level] += 0.1 * (min(below / reach, 1.0) - self._ratio[level])
        # A level that is not drafted any more must be tried again.
        asked = list(self._frontier)
        kept_ratios = self._ratio[asked]
        self._ratio += _UNLEARNING * (_RATIO - self._ratio)
        self._ratio[asked] = kept_ratios

    def achieved(self, requests: int, tokens: float, seconds: float) -> None:
        """What was last planned, its drafting and the step after, gave `requests` so many tokens in so much time.

        `seconds` are without the time for prompts, which the formula does not know (see `StepClock`). Nor is that in
        which the draft read prompts for their first trees held against its promises: it was weighed on its own. A step
        that mostly read tells nothing, nor does one in which fewer requests were left than planned for.
        """
        if self._mode is Mode.PROBE:
            self._looks.lost(seconds - tokens * self.costs.plain.at(requests) / requests)
        else:
            self._looks.earn(seconds)
        if self._promised and requests == self._requests and self._reading <= seconds / 2:
            size, trust = _size(requests), self._trust_at(requests)
            self._kept[size] += 1
            weight = max(_TRUST_WEIGHT * min(requests / 16, 1.0), 1 / (_BELIEVED + self._kept[size]))
            kept = min(tokens / (seconds - self._reading) / self._promised, 2.0)
            self._trust[size] = trust + weight * (kept - trust)

    def _trust_at(self, requests: int) -> float:
        """What promises are worth in batches of about this size, 1 before any.

        Of a size never tried, what is known of the nearest one, and half as much for each power of two between them.
        """
        size = self._tried(requests)
        return 1.0 if size is None else 1.0 + (self._trust[size] - 1.0) * 0.5 ** abs(size - _size(requests))

    def _tried(self, requests: int) -> int | None:
        """The size nearest to this many requests of which `_trust` has something."""
        return min(self._trust, key=lambda size: abs(size - _size(requests)), default=None)


def _size(requests: int) -> int:
    """Batches of about as many requests: the nearest power of two's.

    Servers' and clients' limits are powers of two, and a batch at its limit is mostly a little below it.
    """
    return round(math.log2(requests))
