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
    kept.keep({"d": torch.ones(100, 8)})
    assert kept.get("d") is None
