from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tree.random_tree import trees
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.token_tree import MAX_NODES, TokenTree

VOCABULARIES = [1000, 1024, 1025, 32064, 152064, 2**24]


@settings(deadline=None)
@given(trees(), st.sampled_from(VOCABULARIES))
def test_round_trip_and_every_prefix(tree: TokenTree, vocab: int) -> None:
    code = FlatCode(vocab)
    codes = code.encode(tree)
    assert code.decode(codes) == tree
    assert all(-1 <= each < 2**31 for each in codes)
    for n in range(len(codes) + 1):
        assert code.decode(codes[:n]) == tree.prefix(n)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 999), max_size=MAX_NODES))
def test_plain_tokens_and_placeholders_are_chains(tokens: list[int]) -> None:
    code = FlatCode(1000)
    assert code.decode(tokens) == TokenTree.chain(tokens)
    assert code.encode(TokenTree.chain(tokens)) == tokens


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=MAX_NODES), st.sampled_from(VOCABULARIES))
def test_garbage_is_refused_or_is_the_code_of_what_it_decodes_to(codes: list[int], vocab: int) -> None:
    code = FlatCode(vocab)
    try:
        tree = code.decode(codes)
    except ValueError as error:
        assert "Draft code" in str(error)
    else:
        assert code.encode(tree) == codes


@pytest.mark.parametrize("codes", [[-2], [1000], [1023], [1024], [5, 2 * 1024 + 5]])
def test_codes_outside_vocabulary_or_tree_are_refused(codes: list[int]) -> None:
    with pytest.raises(ValueError, match=f"Draft code {codes[-1]} at place {len(codes) - 1}"):
        FlatCode(1000).decode(codes)


def test_the_largest_code_fits_int32_and_larger_vocabularies_are_refused() -> None:
    star = TokenTree((2**24 - 1,) * MAX_NODES, (-1,) * MAX_NODES)
    assert max(FlatCode(2**24).encode(star)) < 2**31
    with pytest.raises(ValueError, match="16777216 is the most"):
        FlatCode(2**24 + 1)
    with pytest.raises(ValueError, match="vocabulary of 0"):
        FlatCode(0)


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(ValueError, match="Token 1000 is not in the vocabulary"):
        FlatCode(1000).encode(TokenTree.chain([1000]))
    with pytest.raises(ValueError, match="Node 1 is a placeholder"):
        FlatCode(1000).encode(TokenTree((3, -1), (-1, -1)))


def test_a_vocabulary_of_one_token() -> None:
    star = TokenTree((0, 0, 0), (-1, -1, 0))
    assert FlatCode(1).decode(FlatCode(1).encode(star)) == star
