"""Several arrays in one copy come out as they went in."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.engine.transfer import packed, unpacked, upload_all

ARRAYS = [
    np.arange(18, dtype=np.int32).reshape(3, 6),
    np.empty((0, 2), dtype=np.int32),
    np.array([7], dtype=np.int32),
    np.array([[-1, 2**62], [3, -4]], dtype=np.int64),
    np.array([True, False, True]),
    np.array([0.5, -1.5], dtype=np.float32),
]


def test_one_buffer_holds_them_all() -> None:
    views = unpacked(torch.from_numpy(packed(ARRAYS)), ARRAYS)
    for array, view in zip(ARRAYS, views, strict=True):
        assert view.shape == array.shape
        assert torch.equal(view, torch.from_numpy(array))
        assert view.numel() == 0 or view.storage_offset() * view.element_size() % 16 == 0


def test_on_the_cpu_nothing_is_copied() -> None:
    for array, tensor in zip(ARRAYS, upload_all(ARRAYS, torch.device("cpu")), strict=True):
        assert tensor.data_ptr() == array.ctypes.data or not array.size
