"""Copies from the CPU's memory to a device's that nobody waits for, and the one back that is waited for."""

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


def download_all(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The tensors of one device as arrays; on the CPU they are the tensors' own memory.

    From a GPU they come in one copy to pinned memory, and the CPU waits for the event behind it: once.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    gathered = gathered_bytes(tensors)
    host = torch.empty(gathered.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(gathered, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    arrived.synchronize()
    return scattered_bytes(host, tensors)


def gathered_bytes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 on their device: the tensors' bytes one behind the other, each from a multiple of 16 on."""
    buffer = torch.empty(sum(_room(tensor) for tensor in tensors), dtype=torch.uint8, device=tensors[0].device)
    at = 0
    for tensor in tensors:
        buffer[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        at += _room(tensor)
    return buffer


def scattered_bytes(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Arrays over a buffer of `gathered_bytes` on the CPU, with the shapes and dtypes of what it was made of."""
    arrays, at = [], 0
    for tensor in like:
        arrays.append(buffer[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape).numpy())
        at += _room(tensor)
    return arrays


def _room(block: np.ndarray | torch.Tensor) -> int:
    return -(-block.nbytes // _ALIGNMENT) * _ALIGNMENT
