from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vllm_specvlm.draft.gram import BARRIER
from vllm_specvlm.draft.token_ring import TokenRing


class Simple:
    """The same buffer without an index."""

    def __init__(self, capacity: int, n: int) -> None:
        self.capacity, self.n = capacity, n
        self.every: list[int] = []

    def add(self, text: Sequence[int]) -> None:
        self.every += [*text, BARRIER] if len(text) else []

    def token(self, position: int) -> int:
        inside = max(0, len(self.every) - self.capacity) <= position < len(self.every)
        return self.every[position] if inside else BARRIER

    def places(self, gram: Sequence[int]) -> list[int]:
        first = max(0, len(self.every) - self.capacity) + self.n
        return [p for p in range(len(self.every), first - 1, -1) if self.every[p - self.n : p] == list(gram)]


@pytest.mark.parametrize(("capacity", "n"), [(2, 2), (3, 1), (7, 2), (50, 3)])
def test_holds_what_the_simple_buffer_holds(capacity: int, n: int) -> None:
    rng = np.random.default_rng(capacity)
    ring, simple = TokenRing(capacity, n), Simple(capacity, n)
    for _ in range(80):
        text = rng.integers(0, 3, int(rng.integers(0, 15))).tolist()
        ring.add(text)
        simple.add(text)
        end = len(simple.every)
        assert len(ring) == min(capacity, end)
        positions = range(end - capacity - 3, end + 3)
        assert [ring.token(p) for p in positions] == [simple.token(p) if p >= 0 else BARRIER for p in positions]
        for gram in np.ndindex((3,) * n):
            assert list(ring.places(gram)) == simple.places(gram)
        assert len(ring._latest) <= capacity


def test_tokens_before_a_place_stop_at_the_start_of_their_text() -> None:
    ring = TokenRing(100, 2)
    ring.add([1, 2, 3])
    ring.add([4, 5, 6, 7])
    (place,) = ring.places([6, 7])
    assert ring.before(place, 3) == [5, 6, 7]
    assert ring.before(place, 10) == [4, 5, 6, 7]
    assert ring.token(place) == BARRIER


def test_memory_is_bounded() -> None:
    ring = TokenRing(64, 2)
    rng = np.random.default_rng(0)
    for _ in range(100):
        ring.add(rng.integers(0, 2**31, 50).tolist())
    assert len(ring) == 64 and len(ring._tokens) == len(ring._before) == 64 and len(ring._latest) <= 64
