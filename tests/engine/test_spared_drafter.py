"""Lookup that is sure how a request goes on: its drafter is not asked, and what is learned of that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.engine.test_mixed_drafter import AGAIN, SHAPE, TEXT, Gate, Toy, begun, grown, mixed, probabilities
from tests.tree.random_tree import paths
from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.tree.grow import grow_scored


def test_where_the_text_surely_goes_on_the_drafter_is_not_asked() -> None:
    toy = Toy(3)
    drafter = mixed(toy, AGAIN, right=0.7)
    assert drafter.backlog("0") == 0
    tree = grown(drafter)[0]
    assert toy.opened == [] and toy.asked == []
    assert drafter.open(["0"]) == Opening(0, frozenset(), frozenset({0}))
    assert tuple(range(120, 128)) in paths(tree.tree)
    assert set(tree.passes) == {0}


@pytest.mark.parametrize(
    ("text", "traffic", "right"),
    [
        (AGAIN, 1.0, 0.99),  # the drafter gives more than the stretch
        (AGAIN, 0.0, 0.7),  # lookup gained nothing lately
        ([*range(100, 140), 99, *range(100, 108), 98, *range(100, 108)], 1.0, 0.7),  # the text says two things
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], 1.0, 0.7),  # a short match
    ],
    ids=["better drafter", "no merit", "unsure", "short match"],
)
def test_else_it_is(text: list[int], traffic: float, right: float) -> None:
    toy = Toy(3)
    drafter = mixed(toy, text, traffic=traffic, right=right)
    assert not drafter.open(["0"]).known and toy.opened == ["0"] and drafter.backlog("0") == 3


def test_of_a_batch_the_drafter_gets_only_the_others() -> None:
    """By its own indexes, and they are as if the known ones were not there."""
    fresh = [1, 2, 3, 4]
    toy = Toy(9)
    drafter = mixed(toy, AGAIN, fresh, AGAIN, fresh, right=0.7)
    found = grown(drafter, 4)
    assert toy.opened == ["1", "3"] and toy.asked[0] == [(0, ()), (1, ())]
    alone = Toy(9)
    others = grown(mixed(alone, fresh, fresh, right=0.7), 2)
    assert (found[1], found[3]) != (found[3], found[1])
    assert [probabilities(found[i]) for i in (1, 3)] == [probabilities(others[i]) for i in (0, 1)]
    assert all(tuple(range(120, 128)) in paths(found[i].tree) for i in (0, 2))


def test_who_is_behind_is_named_by_its_place_in_the_batch() -> None:
    class Behind(Toy):
        def open(self, request_ids: Sequence[str]) -> Opening:
            super().open(request_ids)
            return Opening(1, frozenset({1}))

    drafter = mixed(Behind(3), AGAIN, [1, 2, 3], [4, 5, 6], right=0.7)
    assert drafter.open(["0", "1", "2"]) == Opening(1, frozenset({2}), frozenset({0}))


def test_once_misled_the_next_tree_asks_the_drafter() -> None:
    drafter = mixed(Toy(3), AGAIN, right=0.7)
    grown(drafter)
    drafter.advance("0", [*range(120, 126)])
    assert drafter.open(["0"]).known, "it was right"
    grown(drafter)
    drafter.advance("0", [5, 6, *range(100, 118)])  # sure of itself once more, but what it said last was wrong
    assert not drafter.open(["0"]).known
    grown(drafter)
    drafter.advance("0", [118, 119, 120, 121])
    assert drafter.open(["0"]).known


def test_a_drafter_that_never_draws_the_next_tree_does_not_keep_lookup_off() -> None:
    """Its prompt is not worth reading, say: after a step without a tree lookup may try again."""
    drafter = mixed(Toy(3), AGAIN, right=0.7)
    grown(drafter)
    drafter.advance("0", [5, 6, *range(100, 118)])
    assert drafter._requests["0"].merit.misled
    drafter.advance("0", [118, 119])
    assert not drafter._requests["0"].merit.misled


def test_what_a_tree_without_the_drafter_gained_is_less_what_the_drafter_usually_gives() -> None:
    """And of the drafter, which said nothing, nothing is learned."""
    drafter = mixed(Toy(3), AGAIN, AGAIN, AGAIN, right=0.7)
    usual = sum(0.7**depth for depth in range(1, 17))
    merits = [drafter._requests[str(i)].merit for i in range(3)]
    for i, tokens in enumerate(([*range(120, 126)], [5], [120, 5])):
        grown(drafter, 3)
        drafter.advance(str(i), tokens)
    gained = [(merit.gain - 1.0) * 8 + 1.0 for merit in merits]
    assert gained[0] == pytest.approx(6 - sum(0.7**depth for depth in range(1, 7)), abs=0.01)
    assert gained[1] == pytest.approx(-usual, abs=0.01)
    assert gained[2] == pytest.approx(1 - usual, abs=0.01)
    assert all(merit.drafter == 0.7 for merit in merits) and drafter.merit._drafter == 0.7
    assert [merit.misled for merit in merits] == [False, True, False]


def test_how_good_the_drafter_is_is_learned_where_it_is_asked() -> None:
    text = [*range(10)]
    drafter = mixed(Toy(0, knows=[7] * 8), text)
    for _ in range(60):
        grown(drafter)
        drafter.advance("0", [7, 7, 5])  # two of its three choices are right
        begun(drafter, "0", text)
    assert drafter.merit._drafter == pytest.approx(2 / 3, abs=0.1)


def test_passes_that_lookup_would_spare_count_where_both_say_the_same() -> None:
    right = mixed(Toy(0, knows=[4, 5, 6, 7, 8, 9, 1, 2]), TEXT)
    merit = right._requests["0"].merit
    merit.gain = 0.0
    for _ in range(3):
        merit.echo = 1.0
        right.open(["0"])
        grow_scored(right, SHAPE, [24], [0], gate=Gate(8))
        right._learn("0", right._requests["0"], [4, 5, 6, 7, 8, 9, 1, 2])
    assert 0.0 < merit.gain < 1.0


def test_lookup_that_is_wrong_where_it_is_sure_is_soon_left() -> None:
    """The answer never is what the text suggests: after one tree the drafter is asked, and no stretch is trusted."""
    toy = Toy(0, knows=[7] * 8)
    drafter = mixed(toy, AGAIN, right=0.7)
    known = []
    for _ in range(40):
        known.append(bool(drafter.open(["0"]).known))
        grown(drafter)
        drafter.advance("0", [7])
        drafter.advance("0", AGAIN)
    assert known[0] and not any(known[1:])
