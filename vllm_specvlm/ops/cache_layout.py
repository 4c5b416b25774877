"""Where vLLM's attention backends keep keys and values inside a page.

Per layer the cache is one tensor [blocks, kv heads, page, 2 * head size]. On GPUs that is what it looks like: a slot
has its key in the first half of the last dimension and its value in the second ("rows"), whatever the strides of the
other dimensions. On CPUs it is contiguous, and whatever its last two dimensions say, one (block, head) holds a plane of
keys (page * head size elements) followed by a plane of values, in an order that depends on the instruction set that
vLLM chose for the layer (`layer.isa`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["vec", "vec16", "amx", "rows"]
LAYOUTS: tuple[Layout, ...] = ("vec", "vec16", "amx", "rows")


class KeyValueOffsets(NamedTuple):
    """Element offsets inside one (block, head): both int64 [page, head size]."""

    key: Tensor
    value: Tensor


def offsets(layout: str, page: int, head_size: int) -> KeyValueOffsets:
    """Offsets of every (slot, channel) of a page.

    vec, vec16: keys channel-major, values slot-major. amx: keys as pairs of channels and values as pairs of slots, in
    groups of 16, as the tile instructions want them. rows: slot-major, a slot's key before its value.

    Raises:
        ValueError: the layout is unknown.
    """
    slot = torch.arange(page)[:, None]
    channel = torch.arange(head_size)[None, :]
    plane = page * head_size
    if layout in ("vec", "vec16"):
        return KeyValueOffsets(channel * page + slot, plane + slot * head_size + channel)
    if layout == "amx":
        key = slot // 16 * 16 * head_size + channel // 2 * 32 + slot % 16 * 2 + channel % 2
        value = channel // 16 * 16 * page + slot // 2 * 32 + channel % 16 * 2 + slot % 2
        return KeyValueOffsets(key, plane + value)
    if layout == "rows":
        key = slot * 2 * head_size + channel
        return KeyValueOffsets(key, key + head_size)
    raise ValueError(f"Unknown cache layout {layout!r}, expected one of {', '.join(LAYOUTS)}.")


def gather(kv_cache: Tensor, layout: str, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of some tokens, as new tensors.

    Args:
        kv_cache: [blocks, kv heads, page, 2 * head size], contiguous.
        layout: one of `LAYOUTS`.
        slots: int64 [n], block * page + slot in the block.

    Returns:
        Keys and values, each [n, kv heads, head size] of the cache's dtype.
    """
    flat, at = _flat_and_offsets(kv_cache, layout)
    block, slot = slots // kv_cache.shape[2], slots % kv_cache.shape[2]
    rows = flat[block]  # [n, heads, 2 * page * head size]
    key, value = (
        rows.gather(2, offset[slot][:, None, :].expand(-1, rows.shape[1], -1)) for offset in (at.key, at.value)
    )
    return key, value


def scatter(kv_cache: Tensor, layout: str, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Writes keys and values [n, kv heads, head size] of some tokens into the cache; the inverse of `gather`."""
    flat, at = _flat_and_offsets(kv_cache, layout)
    block, slot = slots // kv_cache.shape[2], slots % kv_cache.shape[2]
    head = torch.arange(flat.shape[1])[None, :, None]
    flat[block[:, None, None], head, at.key[slot][:, None, :]] = key
    flat[block[:, None, None], head, at.value[slot][:, None, :]] = value


def _flat_and_offsets(kv_cache: Tensor, layout: str) -> tuple[Tensor, KeyValueOffsets]:
    blocks, heads, page, twice = kv_cache.shape
    return kv_cache.view(blocks, heads, page * twice), offsets(layout, page, twice // 2)
