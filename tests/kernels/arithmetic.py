"""vLLM's CPU attention arithmetic for one row, in numpy, with every choice that could be made otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Choices:
    """The choices of vLLM's AVX-512 builds; tests change one at a time."""

    fused: bool = True
    lane_by_position: bool = True
    multiply_by_inverse: bool = True
    scale_queries: bool = True
    library_exp: bool = False


def _bits(pattern: int) -> np.float32:
    return np.uint32(pattern).view(np.float32)


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _fast_exp(x: Floats) -> Floats:
    low = _bits(0xC2AEAC50)
    clamped = np.maximum(x, low)
    k = np.floor(_fma(clamped, _bits(0x3FB8AA3B), np.float32(0.5)))
    rest = _fma(-k, _bits(0x3F317218), clamped)
    poly = np.full_like(rest, 0.00828929059)
    for coefficient in (0.0418978221, 0.166676521, 0.499991506, 0.999999701, 1.0):
        poly = _fma(rest, poly, np.float32(coefficient))
    power = ((k - 1).astype(np.int32) + 127 << 23).view(np.float32)
    return np.where(x < low, np.float32(0), poly * power * np.float32(2)).astype(np.float32)


def row(
    query: Floats, keys: Floats, values: Floats, scale: float, lanes: NDArray[np.int64], choices: Choices
) -> Floats:
    """One softmax tile: query [D], keys and values [n, D], lanes [n] the partial sum of each key; returns [D]."""

    def step(a: Floats, b: Floats, c: Floats) -> Floats:
        return _fma(a, b, c) if choices.fused else (a * b).astype(np.float32) + c

    factor = np.float32(scale)
    scaled = query * factor if choices.scale_queries else query
    logits = np.zeros(len(keys), np.float32)
    for d in range(len(query)):
        logits = step(scaled[d], keys[:, d], logits)
    if not choices.scale_queries:
        logits = logits * factor
    shifted = (logits - logits.max()).astype(np.float32)
    weights = np.exp(shifted.astype(np.float64)).astype(np.float32) if choices.library_exp else _fast_exp(shifted)
    sums = np.zeros(16, np.float32)
    for weight, lane in zip(weights, lanes if not choices.lane_by_position else np.arange(len(keys)) % 16, strict=True):
        sums[lane] += weight
    for half in (8, 4, 2, 1):
        sums = sums[:half] + sums[half : 2 * half]
    out = np.zeros_like(query)
    for weight, value in zip(weights, values, strict=True):
        out = step(weight, value, out)
    return out * (np.float32(1) / sums[0]) if choices.multiply_by_inverse else out / sums[0]
