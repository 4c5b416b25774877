"""Features of confirmed tokens, kept until they are fed."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.engine.feature_store import FeatureStore


def keep(store: FeatureStore, name: str, *positions: int) -> None:
    """float32 [n, 4]: each position's feature is its number; 16 bytes each."""
    numbers = np.asarray(positions)
    store.keep(name, numbers, torch.from_numpy(numbers).float()[:, None].expand(-1, 4).clone())


def read(store: FeatureStore, name: str, *positions: int) -> list[float]:
    return store.read(name, np.asarray(positions))[:, 0].tolist()


def test_chunks_join_and_are_read_in_any_order() -> None:
    store = FeatureStore(1 << 20)
    keep(store, "a", 0, 1, 2)
    keep(store, "a", 9, 10)
    assert store.held("a").tolist() == [0, 1, 2, 9, 10]
    assert read(store, "a", 10, 0, 9) == [10.0, 0.0, 9.0]
    assert store.held("b").tolist() == []


def test_what_was_fed_is_dropped() -> None:
    store = FeatureStore(1 << 20)
    keep(store, "a", 3, 4, 5)
    keep(store, "a", 6, 7)
    store.drop_before("a", 5)
    assert store.held("a").tolist() == [5, 6, 7]
    assert read(store, "a", 5, 7) == [5.0, 7.0]
    store.drop_before("a", 8)
    assert store.held("a").tolist() == []


def test_bound_drops_the_longest_unused_first_and_no_more_than_it_must() -> None:
    store = FeatureStore(capacity_bytes=10 * 16)
    keep(store, "a", 0, 1, 2, 3)
    keep(store, "b", 0, 1)
    keep(store, "b", 2, 3)
    keep(store, "a", 4, 5)
    assert store.held("b").tolist() == [0, 1, 2, 3]
    keep(store, "c", 0)
    assert store.held("b").tolist() == [2, 3], "the oldest chunk of the request used longest ago goes first"
    assert store.held("a").tolist() == [0, 1, 2, 3, 4, 5]
    keep(store, "d", *range(11))
    assert [len(store.held(name)) for name in "abcd"] == [0, 0, 0, 0], "more than the bound was kept"


def test_bytes_are_given_back() -> None:
    """Feeding over and over must not fill the bound."""
    store = FeatureStore(capacity_bytes=6 * 16)
    for start in range(0, 300, 3):
        keep(store, "a", start, start + 1, start + 2)
        assert read(store, "a", start, start + 2) == [start, start + 2]
        store.drop_before("a", start + 2)
    assert store.held("a").tolist() == [299]
    store.forget("a")
    keep(store, "b", 0, 1, 2, 3, 4, 5)
    assert len(store.held("b")) == 6
