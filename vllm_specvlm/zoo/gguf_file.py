"""Read the few GGUF features that SmolLM2's file uses: metadata, F32, Q8_0 and Q4_1 tensors.

A reader of our own (instead of the ``gguf`` package) because the zoo must build with nothing but what vLLM itself
installs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_MAGIC = 0x46554747  # "GGUF", little endian
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32  # weights per quantisation block
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class _TensorInfo:
    shape: tuple[int, ...]  # row major: the slowest dimension first
    kind: int
    offset: int  # bytes, from the start of the data section


class _Cursor:
    """A position in a byte buffer that reads GGUF's primitive values."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        text = bytes(self.data[self.at : self.at + length]).decode("utf-8")
        self.at += length
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalar("<I"), self.scalar("<Q")
            return [self.value(item) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def _f32(raw: npt.NDArray[np.uint8]) -> FloatArray:
    return raw.view(np.float32)


def _q8_0(raw: npt.NDArray[np.uint8]) -> FloatArray:
    blocks = raw.reshape(-1, 2 + _BLOCK)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).reshape(-1)


def _q4_1(raw: npt.NDArray[np.uint8]) -> FloatArray:
    blocks = raw.reshape(-1, 4 + _BLOCK // 2)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    lowest = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    packed = blocks[:, 4:]
    # The low nibbles are the block's first half, the high nibbles its second half.
    codes = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return (scale * codes + lowest).reshape(-1)


_DECODERS: dict[int, tuple[Callable[[npt.NDArray[np.uint8]], FloatArray], int, int]] = {
    # kind: (decoder, bytes per block, weights per block)
    _F32: (_f32, 4, 1),
    _Q4_1: (_q4_1, 4 + _BLOCK // 2, _BLOCK),
    _Q8_0: (_q8_0, 2 + _BLOCK, _BLOCK),
}


class GgufFile:
    """One GGUF file: ``metadata`` by key, and tensors dequantised on request.

    Parameters
    ----------
    path:
        The file to read. It is memory-mapped; nothing is dequantised until :meth:`tensor` is called.
    """

    def __init__(self, path: Path) -> None:
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        cursor = _Cursor(self._bytes.data)
        if cursor.scalar("<I") != _MAGIC:
            raise ValueError(f"{path} is not a GGUF file.")
        cursor.scalar("<I")  # version: 2 and 3 read alike
        tensors, entries = cursor.scalar("<Q"), cursor.scalar("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar("<I"))
        self._tensors: dict[str, _TensorInfo] = {}
        for _ in range(tensors):
            name = cursor.string()
            sizes = [cursor.scalar("<Q") for _ in range(cursor.scalar("<I"))]
            kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
            self._tensors[name] = _TensorInfo(tuple(reversed(sizes)), kind, offset)
        alignment = int(self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        self._data_start = -(-cursor.at // alignment) * alignment

    @property
    def names(self) -> list[str]:
        """Names of all tensors, in file order."""
        return list(self._tensors)

    def tensor(self, name: str) -> FloatArray:
        """The tensor ``name``, dequantised to float32, row major."""
        info = self._tensors[name]
        if info.kind not in _DECODERS:
            raise ValueError(f"Tensor {name} has GGUF type {info.kind}, which this reader does not know.")
        decode, block_bytes, block_weights = _DECODERS[info.kind]
        count = int(np.prod(info.shape))
        start = self._data_start + info.offset
        raw = np.array(self._bytes[start : start + count // block_weights * block_bytes])
        return decode(raw).reshape(info.shape)
