from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree.random_tree import paths, random_tree
from vllm_specvlm.tree.accept import Accepted, walk
from vllm_specvlm.tree.token_tree import TokenTree

#            0: 5 ── 2: 7 ── 3: 8
#   root ──< 1: 6        └── 4: 9
TREE = TokenTree((5, 6, 7, 8, 9), (-1, -1, 0, 2, 2))


@pytest.mark.parametrize(
    ("row_tokens", "path", "tokens"),
    [
        ([1, 0, 0, 0, 0, 0], (), (1,)),
        ([6, 0, 1, 0, 0, 0], (1,), (6, 1)),
        ([5, 7, 0, 9, 0, 1], (0, 2, 4), (5, 7, 9, 1)),
        ([5, 8, 0, 9, 0, 1], (0,), (5, 8)),
    ],
)
def test_walk(row_tokens: list[int], path: tuple[int, ...], tokens: tuple[int, ...]) -> None:
    assert walk(TREE, row_tokens) == Accepted(path, tokens)


def test_empty_tree_gives_the_bonus_alone() -> None:
    assert walk(TokenTree((), ()), [3]) == Accepted((), (3,))


def test_the_first_of_equal_siblings_wins() -> None:
    assert walk(TokenTree((5, 5, 6, 7), (-1, -1, 0, 1)), [5, 6, 7, 1, 2]) == Accepted((0, 2), (5, 6, 1))


def test_placeholders_are_never_accepted() -> None:
    assert walk(TokenTree.chain([-1, 4]), [-1, 4, 4]) == Accepted((), (-1,))


def test_wrong_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="5 nodes needs 6 row tokens, got 5"):
        walk(TREE, [1] * 5)


def by_definition(tree: TokenTree, row_tokens: list[int]) -> Accepted:
    here, tokens = -1, [row_tokens[0]]
    path: list[int] = []
    while True:
        children = [node for node in range(len(tree)) if tree.parents[node] == here and tree.tokens[node] == tokens[-1]]
        if not children:
            return Accepted(tuple(path), tuple(tokens))
        here = children[0]
        path.append(here)
        tokens.append(row_tokens[1 + here])


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_walk_is_the_walk_by_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, vocab=3, nodes=40)
    row_tokens = rng.integers(0, 3, len(tree) + 1).tolist()
    accepted = walk(tree, row_tokens)
    assert accepted == by_definition(tree, row_tokens)
    if accepted.path:
        assert paths(tree)[accepted.path[-1]] == accepted.tokens[:-1]
