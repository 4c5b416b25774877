"""The acceptance rule keeps the target's law: exact enumeration on toy targets, with wrong rules that must show.

Rows are drawn by inverting their cumulative law at one uniform per position, which has finitely many outcomes here. The
rule asks no more of a draw than that positions are independent and each row's token has its law, and a race does too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from tests.tree.random_tree import paths, random_tree
from tests.tree.toy_law import GRID, Context, ToyLaw
from vllm_specvlm.tree.accept import walk
from vllm_specvlm.tree.token_tree import TokenTree

Law = npt.NDArray[np.float64]
EXACT, VISIBLE = 1e-12, 1e-3
SIZES = [(3, 3), (3, 4), (4, 3)]  # vocabulary, length of the text: trees of depth 2 and 3


def contexts(tree: TokenTree) -> list[Context]:
    return [(), *paths(tree)]


def row_tokens_at(target: ToyLaw, tree: TokenTree) -> npt.NDArray[np.int64]:
    """[rows, GRID]: each row's token for the uniforms in the middle of the law's cells of 1/64."""
    uniforms = (np.arange(GRID) + 0.5) / GRID
    laws = [target.next[tuple(max(token, 0) for token in context)] for context in contexts(tree)]
    return np.stack([np.searchsorted(np.cumsum(law), uniforms, side="right") for law in laws])


def emitted_law(
    target: ToyLaw, tree: TokenTree, cells: Callable[[int], Iterator[tuple[tuple[int, ...], float]]]
) -> Law:
    """Law of the texts under `walk`; `cells(depths)` gives the uniforms' cells by depth, with weights."""
    tokens = row_tokens_at(target, tree)
    depths = [0, *tree.depths]
    law = np.zeros((target.vocab,) * target.length)
    for chosen, weight in cells(max(depths) + 1):
        accepted = walk(tree, [int(tokens[row, chosen[depth]]) for row, depth in enumerate(depths)])
        target.complete(law, accepted.tokens, weight)
    return law


def merged_cells(target: ToyLaw, tree: TokenTree) -> list[list[tuple[int, float]]]:
    """Per depth: one cell for each joint outcome of that depth's rows, with its probability. They are few."""
    tokens = row_tokens_at(target, tree)
    depths = np.array([0, *tree.depths])
    merged = []
    for depth in range(int(depths.max()) + 1):
        rows = tokens[depths == depth]
        _, first, count = np.unique(rows, axis=1, return_index=True, return_counts=True)
        merged.append([(int(cell), number / GRID) for cell, number in zip(first, count, strict=True)])
    return merged


def independent_positions(target: ToyLaw, tree: TokenTree) -> Callable[[int], Iterator[tuple[tuple[int, ...], float]]]:
    merged = merged_cells(target, tree)

    def cells(_: int) -> Iterator[tuple[tuple[int, ...], float]]:
        for choice in product(*merged):
            yield tuple(cell for cell, _ in choice), float(np.prod([weight for _, weight in choice]))

    return cells


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("vocab", "length"), SIZES)
def test_walk_with_one_uniform_per_position_is_autoregressive_sampling(seed: int, vocab: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    target = ToyLaw(seed, vocab, length)
    tree = random_tree(rng, vocab, nodes=10, depth=length - 1)
    law = emitted_law(target, tree, independent_positions(target, tree))
    assert np.abs(law - target.texts()).max() <= EXACT


@pytest.mark.parametrize("seed", range(8))
def test_expected_accepted_length_is_the_bound(seed: int) -> None:
    """Sum over nodes of the target's probability of their path: no lossless rule can do better."""
    target = ToyLaw(seed, 3, 3)
    tree = TokenTree((0, 2, 1, 0, 2), (-1, -1, 0, 0, 1))
    tokens = row_tokens_at(target, tree)
    depths = [0, *tree.depths]
    accepted = 0.0
    for chosen, weight in independent_positions(target, tree)(3):
        rows = [int(tokens[row, chosen[depth]]) for row, depth in enumerate(depths)]
        accepted += weight * len(walk(tree, rows).path)
    bound = sum(float(np.prod([target.next[path[:at]][path[at]] for at in range(len(path))])) for path in paths(tree))
    assert accepted == pytest.approx(bound, abs=EXACT)


# ---- rules that are wrong, and must be seen to be wrong


def worst_error(law_of: Callable[[ToyLaw, TokenTree], Law]) -> float:
    tree = TokenTree((0, 1, 2, 0, 1), (-1, -1, 0, 0, 1))
    errors = []
    for seed in range(4):
        target = ToyLaw(seed, 3, 3)
        law = law_of(target, tree)
        assert law.sum() == pytest.approx(1.0, abs=EXACT)
        errors.append(float(np.abs(law - target.texts()).max()))
    return max(errors)


def test_control_the_right_rule_passes_the_same_check() -> None:
    assert worst_error(lambda target, tree: emitted_law(target, tree, independent_positions(target, tree))) <= EXACT


@pytest.mark.parametrize("partner", [lambda cell: cell, lambda cell: GRID - 1 - cell, lambda cell: (cell + 16) % GRID])
def test_control_positions_that_share_a_uniform_show(partner: Callable[[int], int]) -> None:
    """One uniform for two positions; the child's uniform mirrored or shifted from the parent's."""

    def cells(depths: int) -> Iterator[tuple[tuple[int, ...], float]]:
        for cell in range(GRID):
            chosen = [cell]
            while len(chosen) < depths:
                chosen.append(partner(chosen[-1]))
            yield tuple(chosen), 1 / GRID

    assert worst_error(lambda target, tree: emitted_law(target, tree, cells)) > VISIBLE


def test_control_independent_paths_longest_wins_shows() -> None:
    """Each root-to-leaf path is accepted by draws of its own, and the longest accepted one is kept."""

    def law_of(target: ToyLaw, tree: TokenTree) -> Law:
        leaves = [path for node, path in enumerate(paths(tree)) if node not in tree.parents]
        law = np.zeros((target.vocab,) * target.length)
        outcomes = []  # per leaf: (emitted tokens, accepted length, probability)
        for leaf in leaves:
            ways, reach = [], 1.0
            for at, token in enumerate(leaf):
                here = target.next[leaf[:at]]
                ways += [((*leaf[:at], x), at, reach * here[x]) for x in range(target.vocab) if x != token]
                reach *= here[token]
            last = target.next[leaf]
            ways += [((*leaf, x), len(leaf), reach * last[x]) for x in range(target.vocab)]
            outcomes.append(ways)
        for combination in product(*outcomes):
            longest = max(combination, key=lambda way: way[1])
            target.complete(law, longest[0], float(np.prod([way[2] for way in combination])))
        return law

    assert worst_error(law_of) > VISIBLE


def test_control_a_tree_that_peeks_at_independent_row_draws_shows() -> None:
    """Without one uniform per position a tree must not know the draws: here a child stays only if its row gives 0."""

    def law_of(target: ToyLaw, tree: TokenTree) -> Law:
        law = np.zeros((target.vocab,) * target.length)
        for root in range(target.vocab):
            for row in range(target.vocab):
                weight = target.next[()][root] * target.next[(0,)][row]
                peeking = TokenTree.chain([0]) if row == 0 else TokenTree((), ())
                rows = [root, row][: len(peeking) + 1]
                target.complete(law, walk(peeking, rows).tokens, float(weight))
        return law

    assert worst_error(law_of) > VISIBLE
