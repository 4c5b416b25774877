"""Features of confirmed tokens, kept until they are fed."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.engine.feature_store import FeatureStore


def rows(first: int, count: int) -> torch.Tensor:
    """float32 [count, 4]: each position's feature is its number."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, 4).clone()


def read(store: FeatureStore, name: str, positions: list[int]) -> list[float]:
    return store.read(name, np.asarray(positions))[:, 0].tolist()


def test_chunks_join_and_are_read_in_any_order() -> None:
    store = FeatureStore(1 << 20)
    store.keep("a", 0, rows(0, 5))
    store.keep("a", 5, rows(5, 3))
    assert store.stretch("a") == (0, 8)
    assert read(store, "a", [7, 0, 4]) == [7.0, 0.0, 4.0]


def test_what_was_fed_is_dropped() -> None:
    store = FeatureStore(1 << 20)
    store.keep("a", 3, rows(3, 5))
    store.drop_before("a", 6)
    assert store.stretch("a") == (6, 8)
    assert read(store, "a", [6, 7]) == [6.0, 7.0]
    store.drop_before("a", 8)
    assert store.stretch("a") == (0, 0)


def test_a_stretch_that_is_not_continued_is_forgotten() -> None:
    """After preemption a request is computed anew; what a cached prefix left out leaves a gap."""
    store = FeatureStore(1 << 20)
    store.keep("a", 0, rows(0, 5))
    store.keep("a", 9, rows(9, 2))
    assert store.stretch("a") == (9, 11)
    assert read(store, "a", [9, 10]) == [9.0, 10.0]


def test_bound_drops_the_longest_unused_first() -> None:
    store = FeatureStore(capacity_bytes=10 * 16)
    store.keep("a", 0, rows(0, 4))
    store.keep("b", 0, rows(0, 4))
    store.keep("a", 4, rows(4, 2))
    store.keep("c", 0, rows(0, 4))
    assert store.stretch("b") == (0, 0)
    assert store.stretch("a") == (0, 6) and store.stretch("c") == (0, 4)
    store.keep("d", 0, rows(0, 11))
    assert [store.stretch(name) for name in "acd"] == [(0, 0)] * 3, "more than the bound was kept"


def test_bytes_are_given_back() -> None:
    """Feeding over and over must not fill the bound."""
    store = FeatureStore(capacity_bytes=6 * 16)
    for start in range(0, 300, 3):
        store.keep("a", start, rows(start, 3))
        assert read(store, "a", [start, start + 2]) == [start, start + 2]
        store.drop_before("a", start + 2)
    assert store.stretch("a") == (299, 300)
