"""Lookup beside a drafter: what is merged, what needs no forward pass, and what is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree.random_tree import paths
from tests.tree.toy_drafter import ToyDrafter
from vllm_specvlm.draft.drafter import Drafter, Opening
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.draft.lookup_node import LookupNode
from vllm_specvlm.engine.mixed_drafter import MixedDrafter
from vllm_specvlm.schedule.lookup_confidence import Habit, LookupConfidence, evidence
from vllm_specvlm.tree.grow import Frontier, Grown, LevelProposal, TreeShape, grow_scored

SHAPE = TreeShape(nodes=24, depth=8, width=3, top_k=4)
TEXT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
AGAIN = [*range(100, 140), *range(100, 120)]
"""It goes on with 120, as surely as a text can say."""


class Toy(ToyDrafter):
    """A drafter with a random law, or one that knows a text, over tokens 0 to 9."""

    def __init__(self, seed: int, knows: Sequence[int] = ()) -> None:
        super().__init__(seed, 10)
        self.knows = list(knows)
        self.opened: list[str] = []

    def children(self, request: int, context: tuple[int, ...], top_k: int) -> list[tuple[int, float]]:
        if not self.knows:
            return super().children(request, context, top_k)
        right = self.knows[len(context)] if tuple(self.knows[: len(context)]) == context else 0
        others = [token for token in range(10) if token != right][: top_k - 1]
        return [(right, math.log(0.8)), *((token, math.log(0.05)) for token in others)]

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """It reads nothing."""

    advance = begin

    def open(self, request_ids: Sequence[str]) -> Opening:
        self.asked, self._nodes, self.opened = [], {}, list(request_ids)
        return Opening(len(request_ids))

    def backlog(self, request_id: str) -> int | None:
        return 3

    def rehearse(self, rows: int, scored: int) -> None:
        """Nothing."""

    def finish(self, request_id: str) -> None:
        """Nothing."""


class Gate:
    """Forward passes down to a depth, free rows everywhere."""

    def __init__(self, deepest: int) -> None:
        self.deepest = deepest

    def admit(self, depth: int, scores: Sequence[float]) -> list[bool]:
        return [depth <= self.deepest] * len(scores)

    def admit_free(self, depth: int, scores: Sequence[float]) -> list[bool]:
        return [True] * len(scores)


def mixed(toy: Toy, *texts: list[int], traffic: float = 1.0, right: float = 1.0) -> MixedDrafter:
    """In traffic where lookup gained so many tokens per tree, and the drafter's first choices were so often right."""
    made = MixedDrafter(toy, LookupDrafter())
    made.merit.traffic, made.merit._drafter = traffic, right
    for index, text in enumerate(texts):
        made.begin(str(index), text)
    return made


def begun(drafter: MixedDrafter, request_id: str, text: list[int]) -> None:
    """Start a request (anew) in traffic where lookup gained a token per tree."""
    drafter.merit.traffic = 1.0
    drafter.finish(request_id)
    drafter.begin(request_id, text)


def grown(drafter: MixedDrafter, count: int = 1, deepest: int = 99) -> dict[int, Grown]:
    opening = drafter.open([str(index) for index in range(count)])
    return grow_scored(drafter, SHAPE, [24] * count, range(count), gate=Gate(deepest), free=opening.known)


def probabilities(made: Grown) -> dict[tuple[int, ...], float]:
    return dict(zip(paths(made.tree), map(math.exp, made.log_probs), strict=True))


def test_is_a_drafter() -> None:
    drafter = mixed(Toy(0), TEXT)
    assert isinstance(drafter, Drafter)
    assert drafter.backlog("0") == 3


def test_a_text_that_never_repeats_leaves_the_drafter_as_it_is() -> None:
    toy = Toy(3)
    with_lookup = grown(mixed(Toy(3), [1, 2, 3, 4]))[0]
    without = grow_scored(toy, SHAPE, [24], [0])[0]
    # Its own drafts may repeat the prompt, which is then known: only the first level is sure to be the drafter's.
    first = [node for node, parent in enumerate(without.tree.parents) if parent < 0]
    assert {without.tree.tokens[node] for node in first} <= {path[0] for path in paths(with_lookup.tree)}
    nothing = grown(mixed(Toy(3), []))[0]
    assert (nothing.tree, nothing.log_probs) == (without.tree, without.log_probs)
    assert nothing.passes == nothing.tree.depths


def test_a_continuation_enters_the_tree_and_is_one_node_with_the_drafters() -> None:
    tree = probabilities(grown(mixed(Toy(5), TEXT))[0])
    assert (4,) in tree and (4, 5) in tree
    children: dict[tuple[int, ...], float] = {}
    for path, probability in tree.items():
        children[path[:-1]] = children.get(path[:-1], 0.0) + probability
    assert all(whole <= tree.get(path, 1.0) + 1e-5 for path, whole in children.items()), "siblings exceed their parent"


def test_agreement_counts_more_than_contradiction() -> None:
    agreeing = probabilities(grown(mixed(Toy(0, knows=[4, 5, 6, 7, 8, 9, 1, 2]), TEXT))[0])
    contradicting = probabilities(grown(mixed(Toy(0, knows=[7, 7, 7, 7, 7, 7, 7, 7]), TEXT))[0])
    assert agreeing[(4,)] > 0.8 > contradicting.get((4,), 0.0)
    assert contradicting[(7,)] < 0.8


def test_what_is_known_needs_no_forward_pass() -> None:
    toy = Toy(5)
    made = grown(mixed(toy, TEXT), deepest=0)[0]
    assert len(toy.asked) == 1, "only the root was drafted for"
    assert (4, 5, 6, 7) in paths(made.tree)
    assert set(made.passes) == {1} and max(made.tree.depths) > 3


def test_lookup_goes_on_where_the_drafter_led() -> None:
    text = [*range(100, 120), 7, 8]
    toy = Toy(0, knows=[103, 104, 0, 0, 0, 0, 0, 0])
    tree = probabilities(grown(mixed(toy, text), deepest=3)[0])
    # The text does not continue after 7, 8; after the drafted 103, 104 it does.
    assert (103, 104, 105, 106) in tree


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 10_000),
    st.integers(0, 6),
    st.lists(st.lists(st.integers(0, 9), max_size=40), min_size=1, max_size=4),
    st.sampled_from([0.1, 1.0]),
)
def test_frontiers_are_whole_and_trees_are_trees(seed: int, deepest: int, texts: list[list[int]], right: float) -> None:
    toy = Toy(seed)  # checks every frontier it gets
    texts = [[*text, *range(20, 32), *range(20, 32)] if seed >> at & 1 else text for at, text in enumerate(texts)]
    drafter = mixed(toy, *texts, right=right)
    for _ in range(2):
        found = grown(drafter, len(texts), deepest)
        assert len(toy.asked) <= deepest + 1
        for made in found.values():
            assert len(set(paths(made.tree))) == len(made.tree) <= 24
            assert list(made.log_probs) == sorted(made.log_probs, reverse=True)
            assert all(0 <= passes <= depth for passes, depth in zip(made.passes, made.tree.depths, strict=True))
            assert max(made.passes, default=0) <= deepest + 1
        for index, text in enumerate(texts):
            drafter.advance(str(index), [*text[:2], 5])


class Untrustworthy(Toy):
    """Proposes what no number is."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        proposal = super().propose_level(frontier, top_k)
        proposal.log_probs[:, 0] = np.nan
        proposal.log_probs[:, 1] = np.inf
        return proposal


def test_a_drafter_without_numbers_is_survived() -> None:
    made = grown(mixed(Untrustworthy(1), TEXT))[0]
    assert len(set(paths(made.tree))) == len(made.tree)


def answered(drafter: Drafter, answer: Sequence[int], steps: int, prompt: list[int]) -> tuple[list[Grown], float]:
    """The trees of a request that is answered so, again and again, and the tokens accepted of each on the mean."""
    trees: list[Grown] = []
    accepted = 0
    at = len(answer)
    for _ in range(steps):
        if at >= len(answer):
            drafter.finish("0")
            drafter.begin("0", prompt)
            at = 0
        drafter.open(["0"])
        made = grow_scored(drafter, SHAPE, [SHAPE.nodes], [0], gate=Gate(2))[0]
        trees.append(made)
        known = set(paths(made.tree))
        path = tuple(answer[at : at + 1])
        while path in known and at + len(path) < len(answer):
            path = tuple(answer[at : at + len(path) + 1])
        accepted += len(path) - 1
        drafter.advance("0", path)
        at += len(path)
    return trees, accepted / steps


@pytest.mark.parametrize("traffic", [0.0, 1.0], ids=["new", "after traffic that repeated itself"])
def test_where_lookup_is_wrong_trees_are_soon_the_drafters_own(traffic: float) -> None:
    """Its suggestion (4 after 1, 2, 3) never comes, and what it displaces does."""

    class Alike(Toy):
        def children(self, request: int, context: tuple[int, ...], top_k: int) -> list[tuple[int, float]]:
            return [(7, math.log(0.5)), (8, math.log(0.3)), (9, math.log(0.1))][:top_k]

    wrong = mixed(Alike(0), traffic=traffic)
    merged, length = answered(wrong, [8, 7, 7, 9, 7], 200, TEXT)
    own, without = answered(Alike(0), [8, 7, 7, 9, 7], 200, TEXT)
    asked = [tree.tree != other.tree for tree, other in zip(merged, own, strict=True)]
    assert any(asked) == (traffic > 0.0), "only traffic that repeated itself starts with lookup"
    assert merged[-100:] == own[-100:]
    assert length == pytest.approx(without, abs=0.2) and not wrong._merged


def test_where_lookup_is_right_more_is_accepted() -> None:
    """The answer is the prompt's text, of which the drafter knows nothing."""
    prompt = [*range(100, 160), *range(100, 104)]
    right = mixed(Toy(1), traffic=0.0)
    _, length = answered(right, range(104, 156), 100, prompt)
    _, without = answered(Toy(1), range(104, 156), 100, prompt)
    assert without == 0.0
    assert length > 3.0 and right.merit.traffic > 0.5


def test_a_request_that_is_left_out_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = mixed(Toy(2), TEXT, traffic=0.0)
    begun(drafter, "1", TEXT)
    asked: list[str] = []
    stock = drafter._lookup.root

    def root(request_id: str) -> LookupNode:
        asked.append(request_id)
        return stock(request_id)

    monkeypatch.setattr(drafter._lookup, "root", root)
    found = grown(drafter, 2)
    assert asked == ["1"]
    alone = grow_scored(Toy(2), SHAPE, [24, 24], [0, 1])
    assert (found[0].tree, found[0].log_probs) == (alone[0].tree, alone[0].log_probs)
    assert found[1].tree != alone[1].tree


def echoing(prompt: list[int], answer: list[int], step: int = 2) -> list[bool]:
    """Whether lookup looks at each next tree of a request that is answered so, in traffic where it gained nothing."""
    drafter = mixed(Toy(4), prompt, traffic=0.0)
    looks = []
    for at in range(0, len(answer), step):
        looks.append(drafter.grower(["0"]) is drafter)
        drafter.open(["0"])
        drafter.advance("0", answer[at : at + step])
    return looks


def test_a_text_that_never_repeats_is_not_looked_at() -> None:
    assert not any(echoing([*range(100, 160)], [*range(200, 300)]))


def test_an_answer_that_copies_is_looked_at_at_once_and_then_one_tree_in_four() -> None:
    looks = echoing([*range(100, 300)], [*range(110, 290)])
    assert not any(looks[:2]), "nothing was foretold yet"
    assert all(looks[3:10])
    assert sum(looks[12:]) == len(looks[12:]) // 4


def test_a_copy_that_ends_is_forgotten() -> None:
    looks = echoing([*range(100, 130)], [*range(110, 130), *range(200, 300)])
    assert any(looks[:12]) and not any(looks[30:])


def test_a_placeholder_foretells_nothing() -> None:
    text = [*range(10), *range(10), *range(10)]
    drafter = LookupDrafter(barrier_tokens=range(10))
    drafter.begin("0", text)
    assert drafter.echoed("0") == 0
    drafter = LookupDrafter()
    drafter.begin("0", text)
    assert drafter.echoed("0") == 18, "after the first ten and two more, all are what followed before"


def test_answers_of_others_may_foretell_what_the_own_text_does_not() -> None:
    drafter = MixedDrafter(Toy(4), LookupDrafter(shared_tokens=64))
    drafter.begin("0", [1, 2, 3])
    for _ in range(4):
        drafter.advance("0", [5])
    assert drafter.grower(["0"]) is drafter


def test_the_drafter_itself_grows_trees_that_nobody_looks_at() -> None:
    toy = Toy(6)
    drafter = mixed(toy, TEXT, [*range(100, 120)], traffic=0.0)
    assert drafter.grower(["0", "1"]) is toy
    begun(drafter, "0", TEXT)
    assert drafter.grower(["0", "1"]) is drafter and drafter.grower(["1"]) is toy
    # Asked all the same, it passes everything on and keeps nothing.
    drafter.open(["1"])
    found = grow_scored(drafter, SHAPE, [24], [0])[0]
    alone = Toy(6)
    alone.open(["1"])
    assert found.tree == grow_scored(alone, SHAPE, [24], [0])[0].tree
    assert not drafter._levels
    begun(drafter, "0", TEXT)
    drafter.open(["0"])
    drafter.finish("0")
    assert drafter.grower(["1"]) is toy and not drafter._batch and not drafter._merged


def test_what_followed_is_learned_and_what_never_follows_is_dropped() -> None:
    toy = Toy(0, knows=[7] * 8)
    drafter = mixed(toy, TEXT)
    before = probabilities(grown(drafter)[0])[(4,)]
    text = list(TEXT)
    for _ in range(200):  # lookup always says 4 after 1, 2, 3, and the target never does
        grown(drafter)
        drafter.advance("0", [7])
        begun(drafter, "0", text)
    after = probabilities(grown(drafter)[0])
    assert after.get((4,), 0.0) < before / 2
    assert after[(7,)] > 0.7


def test_lookup_takes_nothing_from_what_the_drafter_believes() -> None:
    """However often it was wrong, a token that both suggest is as probable as the drafter says."""
    drafter = mixed(Toy(0, knows=[4, 5, 6, 7, 8, 9, 1, 2]), TEXT)
    for _ in range(200):
        grown(drafter)
        drafter.advance("0", [7])
        begun(drafter, "0", TEXT)
    tree = probabilities(grown(drafter)[0])
    assert drafter.confidence.probability(0.8, evidence(1.0, 3), 0.0) < 0.3
    assert tree[(4,)] == pytest.approx(0.8)
    assert tree[(0,)] == pytest.approx(0.05)


@pytest.mark.parametrize("share", [0.9, 0.2], ids=["mostly right", "mostly wrong"])
def test_confidence_follows_the_outcomes(share: float) -> None:
    confidence, rng = LookupConfidence(), np.random.default_rng(1)
    weight = evidence(1.0, 4)
    assert confidence.probability(None, weight, 0.0) == pytest.approx(0.8)
    for _ in range(600):
        confidence.learn(0.3, weight, 0.0, bool(rng.random() < share))
    assert confidence.probability(None, weight, 0.0) == pytest.approx(share, abs=0.07)
    assert confidence.probability(0.3, weight, 0.0) == pytest.approx(share, abs=0.07)


def test_requests_that_repeat_themselves_are_told_apart() -> None:
    confidence, rng = LookupConfidence(), np.random.default_rng(2)
    weight = evidence(1.0, 4)
    habits = {0.9: Habit(), 0.1: Habit()}
    for _ in range(300):
        for share, habit in habits.items():
            right = bool(rng.random() < share)
            confidence.learn(0.3, weight, habit.logit, right)
            habit.learn(right)
    assert confidence.probability(None, weight, habits[0.9].logit) > 0.75
    assert confidence.probability(None, weight, habits[0.1].logit) < 0.25
    assert Habit().logit == 0.0


def test_a_request_that_is_over_leaves_nothing() -> None:
    drafter = mixed(Toy(0), TEXT)
    grown(drafter)
    drafter.finish("0")
    drafter.finish("never began")
    assert not drafter._requests
    with pytest.raises(KeyError):
        drafter.advance("0", [1])


def test_a_request_that_has_not_caught_up_gets_nothing_from_lookup() -> None:
    """The drafter knows none of its nodes: asked about one, a real drafter raises and is switched off."""

    class Behind(Toy):
        def open(self, request_ids: Sequence[str]) -> Opening:
            super().open(request_ids)
            return Opening(1, frozenset({0}))

        def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
            assert not (frontier.request[frontier.depth > 0] == 0).any()
            proposal = super().propose_level(frontier, top_k)
            proposal.log_probs[frontier.request == 0] = -np.inf
            return proposal

    made = grown(mixed(Behind(3), TEXT, TEXT), 2)
    assert not len(made[0].tree) and len(made[1].tree)
