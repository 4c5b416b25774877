from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree.random_tree import paths
from tests.tree.toy_drafter import Context, ToyDrafter
from vllm_specvlm.tree.grow import Frontier, LevelProposal, TreeShape, grow, grow_scored
from vllm_specvlm.tree.token_tree import MAX_NODES, TokenTree

Scored = list[tuple[float, Context]]


def path_score(drafter: ToyDrafter, request: int, path: Context) -> float:
    score = 0.0
    for at, token in enumerate(path):
        score += dict(drafter.children(request, path[:at], drafter.vocab))[token]
    return score


def best_by_enumeration(drafter: ToyDrafter, request: int, depth: int, budget: int) -> Scored:
    """The `budget` best of all contexts of up to `depth` tokens."""
    every = [path for size in range(1, depth + 1) for path in itertools.product(range(drafter.vocab), repeat=size)]
    scored = [(path_score(drafter, request, path), path) for path in every]
    return sorted(scored, key=lambda each: -each[0])[:budget]


def best_by_definition(drafter: ToyDrafter, request: int, shape: TreeShape, budget: int) -> Scored:
    """Level by level as `grow` documents it, ranking all candidates anew each time."""
    candidates: Scored = []
    expand: list[tuple[float, Context]] = [(0.0, ())]
    for _ in range(shape.depth):
        new = [
            (score + log_prob, (*context, token))
            for score, context in expand
            for token, log_prob in drafter.children(request, context, shape.top_k)
        ]
        candidates += new
        best = sorted(candidates, key=lambda each: -each[0])[:budget]
        ready = sorted((each for each in new if each in best), key=lambda each: -each[0])
        # Expanding the worst of a full set cannot change the set, so leaving it out is not a difference.
        expand = ready[: shape.width]
    return sorted(candidates, key=lambda each: -each[0])[:budget]


shapes = st.builds(
    TreeShape,
    nodes=st.integers(1, 60),
    depth=st.integers(1, 5),
    width=st.integers(1, 6),
    top_k=st.integers(1, 4),
)


@settings(deadline=None, max_examples=150)
@given(shapes, st.integers(2, 4), st.integers(0, 10_000), st.lists(st.integers(0, 70), min_size=1, max_size=4))
def test_grows_what_the_definition_grows(shape: TreeShape, vocab: int, seed: int, budgets: list[int]) -> None:
    drafter = ToyDrafter(seed, vocab)
    roots = [2 * index + 1 for index in range(len(budgets))]
    grown = grow_scored(drafter, shape, budgets, roots)
    assert list(grown) == roots
    assert len(drafter.asked) <= shape.depth
    for level in drafter.asked:
        assert max(np.bincount([request for request, _ in level])) <= shape.width
    for request, budget in zip(roots, budgets, strict=True):
        expected = best_by_definition(drafter, request, shape, min(budget, shape.nodes))
        tree, scores = grown[request].tree, grown[request].log_probs
        assert paths(tree) == [path for _, path in expected]
        assert list(scores) == pytest.approx([score for score, _ in expected], abs=1e-9)
        assert len(tree) <= min(budget, shape.nodes) and max(tree.depths, default=0) <= shape.depth


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(1, MAX_NODES), st.integers(0, 10_000))
def test_unlimited_width_gives_the_best_nodes_there_are(vocab: int, depth: int, budget: int, seed: int) -> None:
    drafter = ToyDrafter(seed, vocab)
    shape = TreeShape(MAX_NODES, depth, width=1000, top_k=vocab)
    tree = grow(drafter, shape, [budget], [0])[0]
    assert paths(tree) == [path for _, path in best_by_enumeration(drafter, 0, depth, budget)]


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 4), st.integers(0, 10_000))
def test_every_cut_keeps_the_best_of_the_tree(shape: TreeShape, vocab: int, seed: int) -> None:
    grown = grow_scored(ToyDrafter(seed, vocab), shape, [60], [0])[0]
    assert all(a >= b for a, b in itertools.pairwise(grown.log_probs))
    for n in range(len(grown.tree) + 1):
        grown.tree.prefix(n)  # raises if it is no tree


def test_the_floor_saves_drafter_calls() -> None:
    """Nothing is expanded whose children cannot enter: with a budget of one, the root alone is asked about."""
    drafter = ToyDrafter(0, 4)
    assert len(grow(drafter, TreeShape(60, 5, 6, 4), [1], [0])[0]) == 1
    assert drafter.asked == [[(0, ())]]


@pytest.mark.parametrize("n", [1, 3, 127])
def test_chain_is_the_greedy_draft(n: int) -> None:
    drafter = ToyDrafter(5, 4)
    tree = grow(drafter, TreeShape.chain(n), [n], [0])[0]
    text: Context = ()
    for _ in range(n):
        text = (*text, drafter.children(0, text, 1)[0][0])
    assert tree == TokenTree.chain(text)


RANKS = [(0,), (1,), (0, 0), (3,), (0, 2), (1, 0), (0, 0, 1), (0, 0, 1, 0)]


@pytest.mark.parametrize("budget", range(len(RANKS) + 2))
def test_fixed_tree_is_exactly_its_paths(budget: int) -> None:
    drafter = ToyDrafter(6, 5)
    shape = TreeShape.fixed(RANKS)
    assert (shape.nodes, shape.depth, shape.width, shape.top_k) == (8, 4, 2, 4)
    trees = grow(drafter, shape, [budget, 8], [0, 3])
    for request, count in ((0, budget), (3, 8)):
        expected = []
        for ranks in RANKS[:count]:
            text: Context = ()
            for rank in ranks:
                text = (*text, drafter.children(request, text, 4)[rank][0])
            expected.append(text)
        assert paths(trees[request]) == expected
    assert all(len(level) <= 2 * shape.width for level in drafter.asked)


class Scripted:
    """Proposes the same rows to every level, cut or repeated to the frontier's length."""

    def __init__(self, tokens: Sequence[int], log_probs: Sequence[float], rows: int | None = None) -> None:
        self.tokens, self.log_probs, self.rows = tokens, log_probs, rows
        self.calls = 0

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        self.calls += 1
        rows = len(frontier.node) if self.rows is None else self.rows
        tokens = np.array([self.tokens] * rows, dtype=np.int64)[:, :top_k]
        return LevelProposal(tokens, np.array([self.log_probs] * rows, dtype=np.float32)[:, :top_k])


INF = float("inf")


def test_duplicates_under_one_parent_count_once() -> None:
    tree = grow(Scripted([7, 7, 8], [-1, -1, -2]), TreeShape(10, 1, 4, 3), [10], [0])[0]
    assert tree == TokenTree((7, 8), (-1, -1))


@pytest.mark.parametrize("nothing", [-INF, float("nan")])
def test_a_row_ends_where_there_is_no_candidate(nothing: float) -> None:
    tree = grow(Scripted([7, 8], [-1, nothing]), TreeShape(10, 3, 4, 2), [10], [0])[0]
    assert tree == TokenTree.chain([7, 7, 7])


def test_fixed_tree_lacks_what_the_drafter_lacks() -> None:
    shape = TreeShape.fixed([(0,), (1,), (2,), (1, 0), (0, 0), (3,)])
    tree = grow(Scripted([7, 7, 8, 9], [-1, -1, -2, -INF]), shape, [9], [0])[0]
    assert tree == TokenTree((7, 8, 7), (-1, -1, 0))


def test_probabilities_above_one_by_rounding_keep_parents_first() -> None:
    grown = grow_scored(Scripted([7], [1e-6]), TreeShape.chain(5), [5], [0])[0]
    assert grown.tree == TokenTree.chain([7] * 5) and grown.log_probs == (0.0,) * 5


def test_nothing_to_grow_asks_nothing() -> None:
    drafter = Scripted([7], [-1])
    assert grow(drafter, TreeShape.chain(5), [], []) == {}
    assert grow(drafter, TreeShape.chain(5), [0, -3], [1, 4]) == {1: TokenTree((), ()), 4: TokenTree((), ())}
    assert drafter.calls == 0


def test_a_silent_drafter_gives_empty_trees() -> None:
    drafter = Scripted([-1], [-INF])
    assert grow(drafter, TreeShape.chain(5), [5], [0]) == {0: TokenTree((), ())}
    assert drafter.calls == 1


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="2 roots need as many budgets"):
        grow(Scripted([7], [-1]), TreeShape.chain(5), [1], [0, 1])
    with pytest.raises(ValueError, match="do not ascend"):
        grow(Scripted([7], [-1]), TreeShape.chain(5), [1, 1], [1, 1])
    with pytest.raises(ValueError, match="answered 3 rows to a frontier of 1"):
        grow(Scripted([7], [-1], rows=3), TreeShape.chain(5), [1], [0])


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ((0, 1, 1, 1), "nodes of a tree is 0; it must be 1 to 127"),
        ((128, 1, 1, 1), "nodes of a tree is 128"),
        ((1, 128, 1, 1), "depth of a tree is 128"),
        ((1, 1, 0, 1), "width of a tree is 0; it must be at least 1"),
        ((1, 1, 1, 0), "top_k of a tree is 0"),
    ],
)
def test_impossible_shapes_are_refused(sizes: tuple[int, int, int, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TreeShape(*sizes)


@pytest.mark.parametrize("bad", [[(0, 0)], [(0,), (0,)], [()], [(-1,)], [(0, 0), (0,)]])
def test_impossible_paths_are_refused(bad: list[Context]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        TreeShape.fixed(bad)


def test_fixed_shapes_are_consistent() -> None:
    with pytest.raises(ValueError, match="at least one path"):
        TreeShape.fixed([])
    with pytest.raises(ValueError, match=r"build it with TreeShape\.fixed"):
        TreeShape(5, 1, 1, 1, paths=((0,),))
    with pytest.raises(ValueError, match="nodes of a tree is 128"):
        TreeShape.fixed((rank,) for rank in range(128))


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 4), st.integers(0, 10_000), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_depths_bound_each_tree(shape: TreeShape, vocab: int, seed: int, depths: list[int]) -> None:
    roots = range(len(depths))
    trees = grow(ToyDrafter(seed, vocab), shape, [60] * len(depths), roots, depths)
    for request, depth in zip(roots, depths, strict=True):
        alone = TreeShape(shape.nodes, min(shape.depth, depth), shape.width, shape.top_k)
        expected = best_by_definition(ToyDrafter(seed, vocab), request, alone, min(60, shape.nodes))
        assert paths(trees[request]) == [path for _, path in expected]


def test_a_gate_decides_what_is_expanded() -> None:
    class Gate:
        """Admits the best node of each level, and none from depth 3 on."""

        def __init__(self) -> None:
            self.seen: list[tuple[int, list[float]]] = []

        def admit(self, depth: int, scores: Sequence[float]) -> list[bool]:
            self.seen.append((depth, list(scores)))
            return [depth < 3 and score == max(scores) for score in scores]

    drafter, gate = ToyDrafter(3, 4), Gate()
    shape = TreeShape(60, 5, 3, 4)
    tree = grow_scored(drafter, shape, [60], [0], gate=gate)[0].tree
    assert [depth for depth, _ in gate.seen] == [1, 2, 3]
    assert [len(level) for level in drafter.asked] == [1, 1, 1]
    assert len(tree) == 12 and max(tree.depths) == 3
    assert all(len(scores) == 3 and scores == sorted(scores, reverse=True) for _, scores in gate.seen)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 4), st.integers(0, 10_000))
def test_origins_name_the_proposals(shape: TreeShape, vocab: int, seed: int) -> None:
    drafter = ToyDrafter(seed, vocab)
    grown = grow_scored(drafter, shape, [60, 7], [0, 3])
    rows = [row for level in drafter.asked for row in level]
    for request, made in grown.items():
        for path, origin in zip(paths(made.tree), made.origins, strict=True):
            asked, context = rows[origin // shape.top_k]
            assert (asked, context) == (request, path[:-1])
            assert drafter.children(request, context, shape.top_k)[origin % shape.top_k][0] == path[-1]


class Known(ToyDrafter):
    """Knows what follows everywhere, and says so."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        proposal = super().propose_level(frontier, top_k)
        self.free = frontier.free
        proposal.foreseen = np.full(proposal.tokens.shape, 0.9, dtype=np.float32)
        return proposal


FIXED = TreeShape.fixed([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)])


@pytest.mark.parametrize("shape", [TreeShape(20, 3, 3, 4), FIXED], ids=["best", "fixed"])
def test_below_a_free_root_every_row_is_free(shape: TreeShape) -> None:
    class Heard(Known):
        def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
            proposal = super().propose_level(frontier, top_k)
            for row, request in enumerate(frontier.request.tolist()):
                assert (self.free is not None and bool(self.free[row])) == (request == 1)
            return proposal

    grown = grow_scored(Heard(2, 5), shape, [20, 20], [0, 1], free={1})
    assert grown[0].passes == grown[0].tree.depths
    assert len(grown[1].tree) == len(grown[0].tree) and set(grown[1].passes) == {0}


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 4), st.integers(0, 10_000))
def test_nothing_comes_below_a_token_that_ends(shape: TreeShape, vocab: int, seed: int) -> None:
    """Of two requests only the first ends with token 1."""
    drafter = ToyDrafter(seed, vocab)
    grown = grow_scored(drafter, shape, [60, 60], [0, 1], ends=[{1}, ()])
    assert all(1 not in path[:-1] for path in paths(grown[0].tree))
    assert not any(request == 0 and 1 in context for level in drafter.asked for request, context in level)
    assert grown[1].tree == grow(ToyDrafter(seed, vocab), shape, [60], [1])[1]
