"""Copies from the CPU's memory to a device's that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_ALIGNMENT = 16


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on `device`; on the CPU it is the array's own memory.

    A GPU's copy starts from pinned memory and is queued on the current stream: the CPU goes on at once.
    """
    host = torch.from_numpy(array)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def upload_all(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The same for several arrays, in one copy."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpacked(upload(packed(arrays), device), arrays)


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """uint8: the arrays' bytes one behind the other, each from a multiple of 16 on."""
    buffer = np.zeros(sum(_room(array) for array in arrays), dtype=np.uint8)
    at = 0
    for array in arrays:
        buffer[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        at += _room(array)
    return buffer


def unpacked(buffer: torch.Tensor, like: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Views of a `packed` buffer, with the shapes and dtypes of the arrays that it was made of."""
    views, at = [], 0
    for array in like:
        dtype = torch.from_numpy(array[:0]).dtype
        views.append(buffer[at : at + array.nbytes].view(dtype).view(array.shape))
        at += _room(array)
    return views


def _room(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
