"""A covering array: few cases in which every two values of different axes meet at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

Case = tuple[str, ...]
"""A value per axis, in the axes' order."""

_Pair = tuple[tuple[int, str], tuple[int, str]]


def pairs_of(case: Case) -> set[_Pair]:
    """All pairs of values that meet in a case, each with the number of its axis."""
    return set(combinations(enumerate(case), 2))


def pairwise_cases(axes: Mapping[str, Sequence[str]]) -> list[Case]:
    """Greedy, and the same for the same axes: each case begins with a pair not met yet and is filled with what adds
    most (Cohen et al. 1997, "The AETG system", without its random restarts)."""
    names = list(axes)
    levels = [axes[name] for name in names]
    missing: list[_Pair] = [
        ((a, x), (b, y)) for a, b in combinations(range(len(names)), 2) for x in levels[a] for y in levels[b]
    ]
    left = dict.fromkeys(missing)
    uses = {(axis, value): 0 for axis, values in enumerate(levels) for value in values}
    cases: list[Case] = []
    while left:
        chosen = dict(next(iter(left)))
        for axis in range(len(names)):
            if axis not in chosen:
                chosen[axis] = max(levels[axis], key=lambda value: _gain(left, chosen, axis, value, uses))
        case = tuple(chosen[axis] for axis in range(len(names)))
        for pair in pairs_of(case):
            left.pop(pair, None)
        for place in enumerate(case):
            uses[place] += 1
        cases.append(case)
    return cases


def _gain(
    left: Mapping[_Pair, None], chosen: Mapping[int, str], axis: int, value: str, uses: Mapping[tuple[int, str], int]
) -> tuple[int, int]:
    """New pairs that the value brings; among equals the one used least."""
    place = (axis, value)
    new = sum(((met, place) if met < place else (place, met)) in left for met in chosen.items())
    return new, -uses[axis, value]


def core_of(cases: Sequence[Case], axes: Sequence[int]) -> list[Case]:
    """Few of the cases, in which every value of these axes is met."""
    missing = {(axis, case[axis]) for case in cases for axis in axes}
    chosen: list[Case] = []
    while missing:
        best = max(cases, key=lambda case: len(missing & set(enumerate(case))))
        missing -= set(enumerate(best))
        chosen.append(best)
    return chosen
