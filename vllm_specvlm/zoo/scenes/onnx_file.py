"""Read the weights of an ONNX file: just enough of its protocol buffers, without the package ``onnx``.

Message numbers are those of ``onnx.proto``: ModelProto.graph 7; GraphProto.node 1, .initializer 5; NodeProto.input 1,
.output 2, .name 3, .op_type 4, .attribute 5; AttributeProto.t 5; TensorProto.dims 1, .data_type 2, .name 8,
.raw_data 9.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
_FLOAT = 1


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and content of every field of a message: an int, or the bytes of what is inside."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind == 2:
            size = varint()
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"An ONNX file has no fields of wire type {kind}; the file is damaged.")
        yield key >> 3, data[at : at + size]
        at += size


def _integers(content: memoryview | int) -> list[int]:
    if isinstance(content, int):
        return [content]
    return [value for _, value in _packed(content)]


def _packed(data: memoryview) -> Iterator[tuple[int, int]]:
    value = shift = 0
    for index, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield index, value
            value = shift = 0


class OnnxFile:
    """Float32 tensors of an ONNX model, by name, and which of them each node takes in."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        graph = next(content for number, content in _fields(memoryview(self._map)) if number == 7)
        assert isinstance(graph, memoryview)
        self._tensors: dict[str, tuple[tuple[int, ...], memoryview]] = {}
        self._inputs: dict[str, list[str]] = {}
        for number, content in _fields(graph):
            if number == 5 and isinstance(content, memoryview):
                self._tensor(content, None)
            elif number == 1 and isinstance(content, memoryview):
                self._node(content)

    def _tensor(self, message: memoryview, name: str | None) -> None:
        shape: list[int] = []
        kind, raw = 0, None
        for number, content in _fields(message):
            if number == 1:
                shape += _integers(content)
            elif number == 2 and isinstance(content, int):
                kind = content
            elif number == 8 and isinstance(content, memoryview):
                name = name or bytes(content).decode()
            elif number == 9 and isinstance(content, memoryview):
                raw = content
        if kind == _FLOAT and raw is not None and name is not None:
            self._tensors[name] = (tuple(shape), raw)

    def _node(self, message: memoryview) -> None:
        inputs: list[str] = []
        name = output = ""
        constant: memoryview | None = None
        for number, content in _fields(message):
            if not isinstance(content, memoryview):
                continue
            if number == 1:
                inputs.append(bytes(content).decode())
            elif number == 2:
                output = bytes(content).decode()
            elif number == 3:
                name = bytes(content).decode()
            elif number == 5:
                for part, inside in _fields(content):
                    if part == 5 and isinstance(inside, memoryview):
                        constant = inside
        self._inputs[name] = inputs
        if constant is not None:  # a Constant node: its value goes by the name of its output
            self._tensor(constant, output)

    @property
    def names(self) -> list[str]:
        """Names of all float32 tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> FloatArray:
        """The tensor ``name``; ``KeyError`` if the file has none."""
        shape, raw = self._tensors[name]
        return np.frombuffer(raw, dtype=np.float32).reshape(shape).copy()

    def weight_of(self, node: str) -> FloatArray:
        """The one constant that the node ``node`` multiplies with or adds."""
        found = [name for name in self._inputs[node] if name in self._tensors]
        if len(found) != 1:
            raise KeyError(f"Node {node} has {len(found)} constant inputs instead of one.")
        return self.tensor(found[0])
