"""Several arrays in one copy come out as they went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_specvlm.engine.static_tables import StaticTables
from vllm_specvlm.engine.transfer import download_all, gathered_bytes, packed, scattered_bytes, unpacked, upload_all

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


def test_back_they_come_in_one_buffer_too() -> None:
    """Strided ones and scalars included."""
    tensors = [*map(torch.from_numpy, ARRAYS), torch.arange(12.0, dtype=torch.float64).view(3, 4).T, torch.tensor(5)]
    buffer = gathered_bytes(tensors)
    for found in (scattered_bytes(buffer, tensors), download_all(tensors)):
        for tensor, array in zip(tensors, found, strict=True):
            assert array.shape == tuple(tensor.shape)
            assert torch.equal(torch.from_numpy(array), tensor)


def test_tables_stay_where_they_are() -> None:
    tables = StaticTables([np.empty((4, 6), dtype=np.int32), np.empty((9, 2), dtype=np.int64)], torch.device("cpu"))
    first = [np.arange(12, dtype=np.int32).reshape(2, 6), np.full((9, 2), 2**40)]
    second = [np.arange(24, dtype=np.int32).reshape(4, 6), np.full((0, 2), 1)]
    places = []
    for arrays in (first, second, first):
        written = tables.write(arrays)
        places.append([table.data_ptr() for table in written if table.numel()])
        assert all(torch.equal(table, torch.from_numpy(array)) for table, array in zip(written, arrays, strict=True))
    assert places[0] == places[2] and places[1] == places[0][:1]
    with pytest.raises(ValueError, match="5 lines and room for 4"):
        tables.write([np.zeros((5, 6), dtype=np.int32), first[1]])
