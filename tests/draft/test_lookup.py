from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from tests.tree.random_tree import paths
from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.tree.grow import TreeShape, grow, grow_scored
from vllm_specvlm.tree.token_tree import TokenTree

WIDE = TreeShape(nodes=60, depth=6, width=16, top_k=8)


def drafted(drafter: LookupDrafter, request: str = "a", shape: TreeShape = WIDE) -> dict[tuple[int, ...], float]:
    """What is drafted for a request: paths and their probabilities."""
    drafter.open([request])
    grown = grow_scored(drafter, shape, [60], [0])[0]
    return dict(zip(paths(grown.tree), map(math.exp, grown.log_probs), strict=True))


def lookup(text: list[int], shape: TreeShape = WIDE, **options: int) -> dict[tuple[int, ...], float]:
    drafter = LookupDrafter(**options)  # type: ignore[arg-type]
    drafter.begin("a", text)
    return drafted(drafter, shape=shape)


def test_is_a_drafter() -> None:
    assert isinstance(LookupDrafter(), Drafter)


def test_continues_the_one_earlier_occurrence() -> None:
    tree = lookup([1, 2, 3, 4, 5, 6, 9, 8, 2, 3])
    assert list(tree)[:4] == [(4,), (4, 5), (4, 5, 6), (4, 5, 6, 9)]


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 4], [2, 1, 3, 2]])
def test_text_without_repetition_gives_nothing(text: list[int]) -> None:
    assert lookup(text) == {}


def test_min_match() -> None:
    text = [1, 2, 3, 4, 7, 3]
    assert lookup(text) == {}
    assert next(iter(lookup(text, min_match=1))) == (4,)
    assert lookup([1, 2, 3, 4, 2, 3], min_match=3) == {}


def test_every_continuation_is_a_branch_with_its_share() -> None:
    tree = lookup([7, 8, 1, 0, 7, 8, 2, 0, 7, 8, 1, 5, 7, 8], TreeShape(60, 1, 1, 8))
    # the last occurrence was preceded by 5, others by 0 or nothing: all match two tokens
    assert tree == pytest.approx({(1,): 2 / 3 * 2 / 3, (2,): 1 / 3 * 2 / 3})


def test_a_longer_match_outweighs_shorter_ones() -> None:
    tree = lookup([9, 7, 8, 1, 0, 7, 8, 2, 4, 7, 8, 2, 9, 7, 8], TreeShape(60, 1, 1, 8))
    assert tree == pytest.approx({(1,): 1 / 1.5 * 3 / 4, (2,): 0.5 / 1.5 * 3 / 4})


def test_max_match_bounds_what_is_told_apart() -> None:
    text = [9, 7, 8, 1, 0, 7, 8, 2, 9, 7, 8]
    assert next(iter(lookup(text, TreeShape(60, 1, 1, 8), max_match=3))) == (1,)
    assert lookup(text, TreeShape(60, 1, 1, 8), max_match=2) == pytest.approx({(2,): 1 / 3, (1,): 1 / 3})
    assert next(iter(lookup(text, TreeShape(60, 1, 1, 8), max_match=2))) == (2,)  # of equals the later


def test_path_probability_falls_as_the_match_predicts() -> None:
    text = list(range(100, 140))
    tree = lookup([*text, *text[:8]])
    assert [tree[tuple(text[8 : 8 + d])] for d in range(1, 7)] == pytest.approx([8 / (8 + d) for d in range(1, 7)])


def test_a_cycle_is_drafted_round_and_round() -> None:
    chain = TreeShape.chain(20)
    assert list(lookup([1, 2, 3, 1, 2, 3, 1, 2], chain))[-1] == (3, 1, 2) * 6 + (3, 1)
    assert list(lookup([5, 5, 5], chain))[-1] == (5,) * 20


def test_advancing_is_beginning_with_more() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(0, 6, 300).tolist()
    step_by_step = LookupDrafter()
    step_by_step.begin("a", text[:10])
    at = 10
    while at < len(text):
        count = int(rng.integers(0, 5))
        step_by_step.advance("a", text[at : at + count])
        at += count
        assert drafted(step_by_step) == lookup(text[: min(at, len(text))])


def test_matches_are_found_where_they_are() -> None:
    """Against a search through the whole text."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        text = rng.integers(0, 4, int(rng.integers(2, 60))).tolist()
        places = [p for p in range(2, len(text)) if text[p - 2 : p] == text[-2:]]
        assert set(lookup(text, TreeShape(60, 1, 1, 8))) == {(text[p],) for p in places}


def test_requests_do_not_mix_and_batch_order_counts() -> None:
    drafter = LookupDrafter()
    drafter.begin("a", [1, 2, 3, 1, 2])
    drafter.begin("b", [1, 2, 4, 1, 2])
    drafter.begin("c", [1, 2])
    drafter.open(["b", "c", "a"])
    trees = grow(drafter, TreeShape.chain(1), [5, 5, 5], [0, 1, 2])
    assert trees == {0: TokenTree.chain([4]), 1: TokenTree((), ()), 2: TokenTree.chain([3])}


def test_life_of_a_request() -> None:
    drafter = LookupDrafter()
    with pytest.raises(KeyError, match="Request a is not known"):
        drafter.advance("a", [1])
    drafter.begin("a", [1, 2, 3, 1, 2])
    drafter.begin("a", [1, 2, 4, 1, 2])  # starts anew
    assert set(drafted(drafter, shape=TreeShape.chain(1))) == {(4,)}
    drafter.finish("a")
    drafter.finish("a")
    drafter.open(["a"])
    with pytest.raises(KeyError, match="Request a is not known"):
        grow(drafter, WIDE, [5], [0])


def test_barriers_are_neither_matched_nor_proposed() -> None:
    drafter = LookupDrafter(barrier_tokens=[99])
    drafter.begin("a", [1, 2, 99, 99, 99, 3, 1, 2, 4, 5, 1, 2])
    assert set(drafted(drafter, shape=TreeShape(60, 1, 1, 8))) == {(4,)}
    drafter.advance("a", [99, 99])
    assert drafted(drafter) == {}
    # a barrier ends a match: without it the first occurrence would match three tokens
    drafter.begin("b", [99, 7, 8, 1, 0, 7, 8, 2, 99, 7, 8])
    assert drafted(drafter, "b", TreeShape(60, 1, 1, 8)) == pytest.approx({(2,): 1 / 3, (1,): 1 / 3})


# ---- the buffer of other requests' answers


def test_other_answers_are_used_only_if_shared() -> None:
    for shared, expected in ((0, set()), (100, {(3,), (3, 4)})):
        drafter = LookupDrafter(shared_tokens=shared)
        drafter.begin("a", [50, 51, 52])
        drafter.advance("a", [1, 2])
        drafter.advance("a", [3, 4])
        drafter.finish("a")
        drafter.begin("b", [9, 1, 2])
        assert set(drafted(drafter, "b")) == expected


def test_prompts_are_not_shared() -> None:
    drafter = LookupDrafter(shared_tokens=100)
    drafter.begin("a", [1, 2, 3, 4])
    drafter.advance("a", [5])
    drafter.finish("a")
    drafter.begin("b", [9, 1, 2])
    assert drafted(drafter, "b") == {}


def test_own_and_shared_places_are_weighed_together() -> None:
    drafter = LookupDrafter(shared_tokens=100)
    for token in (3, 3, 4):
        drafter.begin("x", [])
        drafter.advance("x", [6, 1, 2, token])
        drafter.finish("x")
    drafter.begin("a", [1, 2, 5, 6, 1, 2])
    tree = drafted(drafter, shape=TreeShape(60, 1, 1, 8))
    assert tree == pytest.approx({(3,): 2 / 3.25 * 3 / 4, (4,): 1 / 3.25 * 3 / 4, (5,): 0.25 / 3.25 * 3 / 4})


def test_the_oldest_answers_are_dropped() -> None:
    drafter = LookupDrafter(shared_tokens=12)
    for first in (10, 20, 30, 40):
        drafter.begin("x", [])
        drafter.advance("x", [first, first + 1, first + 2])  # and a separator: four tokens of the buffer
        drafter.finish("x")
    drafter.begin("a", [])
    found = []
    for first in (10, 20, 30, 40):
        drafter.begin("a", [first, first + 1])
        found.append(set(drafted(drafter)))
    assert found == [set(), {(22,)}, {(32,)}, {(42,)}]


# ---- limits


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"min_match": 0}, "min_match is 0"),
        ({"min_match": 5, "max_match": 4}, "min_match is 5 and max_match 4"),
        ({"shared_tokens": -1}, "shared_tokens is -1"),
        ({"shared_tokens": 1}, "holds no n-gram of 2"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LookupDrafter(**options)  # type: ignore[arg-type]


def best_of(count: int, work: object) -> float:
    """Shortest of some runs in seconds, which a busy machine does not lengthen."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("tokens", [1, 5, 1000, 150_000])
def test_a_prompt_of_4096_tokens_is_indexed_in_time(tokens: int) -> None:
    text = np.random.default_rng(0).integers(0, tokens, 4096).tolist()
    drafter = LookupDrafter()
    assert best_of(5, lambda: drafter.begin("a", text)) < 0.010


def test_a_lookup_is_quick_on_the_most_repetitive_text() -> None:
    drafter = LookupDrafter(shared_tokens=10_000)
    drafter.begin("a", [])
    drafter.advance("a", [1] * 9000)
    drafter.finish("a")
    drafter.begin("a", [1] * 8000)
    drafter.open(["a"])
    assert best_of(5, lambda: grow(drafter, TreeShape(60, 6, 8, 4), [60], [0])) < 0.010


def test_trees_are_in_order_of_probability() -> None:
    text = np.random.default_rng(3).integers(0, 3, 400).tolist()
    probabilities = list(lookup(text).values())
    assert len(probabilities) == 60
    assert all(a >= b for a, b in itertools.pairwise(probabilities)) and probabilities[0] < 1


def test_ids_outside_the_vocabulary_are_never_drafted() -> None:
    """A tokenizer may know ids that the model's logits do not have."""
    drafter = LookupDrafter(min_match=1, vocabulary=100)
    drafter.begin("a", [1, 2, 100, 1, 2, 101, 1, 2])
    drafter.open(["a"])
    assert grow(drafter, TreeShape(8, 4, 4, 4), [8], [0])[0].tokens == ()
    drafter.begin("b", [1, 2, 99, 1, 2])
    drafter.open(["b"])
    assert grow(drafter, TreeShape(8, 4, 4, 4), [8], [0])[0].tokens[0] == 99
