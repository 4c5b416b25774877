"""The target's visual tokens, within a bound."""

from __future__ import annotations

import torch

from vllm_specvlm.engine.target_pictures import TargetPictures


def test_deeper_layers_features_are_cut_off_and_batches_not_kept() -> None:
    batch = torch.randn(10, 24)
    kept = TargetPictures(1 << 20, hidden_size=8)
    kept.keep({"a": batch[:4]})
    found = kept.get("a")
    assert found is not None and torch.equal(found, batch[:4, :8])
    assert found.untyped_storage().nbytes() == found.nbytes


def test_bound() -> None:
    kept = TargetPictures(2 * 4 * 8 * 4, hidden_size=8)
    kept.keep({"a": torch.ones(4, 8), "b": torch.ones(4, 8)})
    assert kept.get("a") is not None
    kept.keep({"c": torch.ones(4, 8)})
    assert kept.get("b") is None, "the one used last was dropped, not the one unused longest"
    assert kept.get("a") is not None and kept.get("c") is not None


def test_what_does_not_fit_is_not_copied_over_and_over() -> None:
    """vLLM offers its whole encoder cache after every step."""
    kept = TargetPictures(2 * 4 * 8 * 4, hidden_size=8)
    offered = {name: torch.ones(4, 8) for name in "abc"}
    kept.keep(offered)
    there = [name for name in "abc" if kept.get(name) is not None]
    assert len(there) == 2
    kept.keep(offered)
    assert [name for name in "abc" if kept.get(name) is not None] == there
    kept.keep({"e": torch.ones(100, 8)})
    assert [name for name in "abc" if kept.get(name) is not None] == there, "one too large pushed others out"
