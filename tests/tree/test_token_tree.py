from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree.random_tree import trees
from vllm_specvlm.tree.token_tree import MAX_NODES, TokenTree


def ancestors_or_self(tree: TokenTree, node: int) -> set[int]:
    found = set()
    while node >= 0:
        found.add(node)
        node = tree.parents[node]
    return found


def bits(words: np.ndarray) -> set[int]:
    return {64 * word + bit for word in range(2) for bit in range(64) if int(words[word]) >> bit & 1}


@settings(deadline=None)
@given(trees())
def test_masks_and_depths_follow_the_parents(tree: TokenTree) -> None:
    masks, rooted = tree.ancestor_masks(), tree.ancestor_masks(rooted=True)
    assert masks.shape == (len(tree), 2) and rooted.shape == (len(tree) + 1, 2)
    assert masks.dtype == rooted.dtype == np.uint64
    assert bits(rooted[0]) == {0}
    for node in range(len(tree)):
        above = ancestors_or_self(tree, node)
        assert bits(masks[node]) == above
        assert bits(rooted[node + 1]) == {0} | {each + 1 for each in above}
        assert tree.depths[node] == len(above)


def test_the_largest_tree_fills_both_mask_words() -> None:
    chain = TokenTree.chain(range(MAX_NODES))
    assert bits(chain.ancestor_masks()[-1]) == set(range(127))
    assert bits(chain.ancestor_masks(rooted=True)[-1]) == set(range(128))
    assert chain.ancestor_masks()[63].tolist() == [2**64 - 1, 0]


@settings(deadline=None)
@given(trees(), st.integers(0, MAX_NODES + 1))
def test_a_prefix_is_a_tree(tree: TokenTree, n: int) -> None:
    cut = tree.prefix(n)
    assert (cut.tokens, cut.parents) == (tree.tokens[:n], tree.parents[:n])
    assert cut.depths == tree.depths[:n]


def test_chains() -> None:
    assert TokenTree.chain([5, -1, 7]).parents == (-1, 0, 1)
    assert TokenTree.chain([5, -1, 7]).is_chain and TokenTree((), ()).is_chain
    assert not TokenTree((5, 6), (-1, -1)).is_chain


def test_trees_are_values() -> None:
    tree = TokenTree((5, 6), (-1, -1))
    assert tree == TokenTree((5, 6), (-1, -1)) and hash(tree) == hash(TokenTree((5, 6), (-1, -1)))
    assert tree != TokenTree((5, 6), (-1, 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.tokens = (1, 2)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tokens", "parents", "complaint"),
    [
        ((1,), (), "one parent per token"),
        ((1,), (0,), "Node 0 has parent 0"),
        ((1, 2), (-1, -2), "Node 1 has parent -2"),
        ((1, 2), (1, -1), "Node 0 has parent 1"),
        ((-2,), (-1,), "Token -2"),
        ((1,) * 128, (-1,) * 128, "at most 127 nodes, got 128"),
    ],
)
def test_what_is_no_tree_is_refused(tokens: tuple[int, ...], parents: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TokenTree(tokens, parents)


def test_negative_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix of -1"):
        TokenTree.chain([1]).prefix(-1)
