"""Counter-based uniforms, and drawing a token from a law with one of them."""

from __future__ import annotations

import torch
from torch import Tensor

PURPOSE_ACCEPT = 1
"""Purpose of the uniforms that draw the target's tokens."""

PURPOSE_DRAFT = 2
"""Purpose of the uniforms that a sampling drafter uses; never those that draw the target's tokens."""

_BLOCK = 512
_CHUNK_ELEMENTS = 1 << 22


def _signed(word: int) -> int:
    """The int64 with the same 64 bits: torch has wrap-around arithmetic for signed integers only."""
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words."""
    x = (x ^ _shift(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 27)) * _MULTIPLIER_2
    return x ^ _shift(x, 31)


def uniforms(seeds: Tensor, positions: Tensor, purpose: int) -> Tensor:
    """One uniform in [0, 1) for each (seed, position, purpose): int64 [n] and int64 [n] give float64 [n].

    `seeds` are the requests' seeds (any int64), `positions` the positions of the tokens to be drawn in their request.
    The value is a pure function of the three numbers, the same bits on every device and rank: with one uniform per
    (seed, position) a sampled text depends on the seed and the target's laws only, whatever trees were drafted.
    Output number `position` of SplitMix64 (Steele, Lea, Flood 2014), started at a hash of seed and purpose; the upper
    53 bits make the float.
    """
    start = _mix(_mix(seeds + _GOLDEN) + _signed((purpose * 0xD1342543DE82EF95) % (1 << 64)))
    word = _mix(start + (positions + 1) * _GOLDEN)
    return _shift(word, 11).to(torch.float64) * 2.0**-53


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Token of each row by inverting its cumulative law at u: float32 [n, V] and float64 [n] give int64 [n].

    Row i gives the first token whose cumulative probability exceeds u[i] times the row's sum, summed in float64; a law
    that float32 left a little off one needs no
    normalising. A token of probability 0 is never drawn, for no u in [0, 1).
    Each row depends on its own law and uniform only. Temporary memory is bounded (32 MiB of float64) by working on
    some rows at a time. On the CPU a row without positive, finite mass raises ValueError; on other devices,
    where looking would cost a synchronisation, such a row's token is undefined.
    """
    if not len(probs):
        return torch.empty(0, dtype=torch.int64, device=probs.device)
    rows = max(1, _CHUNK_ELEMENTS // probs.shape[1])
    return torch.cat([_draw(p, v) for p, v in zip(torch.split(probs, rows), torch.split(u, rows), strict=True)])


def _draw(probs: Tensor, u: Tensor) -> Tensor:
    """Two levels, to spare the cumulative sum over a whole vocabulary: find the block, then the token inside it."""
    vocab = probs.shape[1]
    full = vocab // _BLOCK * _BLOCK
    parts = []
    if full:
        parts.append(probs[:, :full].view(len(probs), -1, _BLOCK).sum(-1, dtype=torch.float64))
    if full < vocab:
        parts.append(probs[:, full:].sum(-1, keepdim=True, dtype=torch.float64))
    sums = torch.cat(parts, dim=1)
    totals = sums.cumsum(1)
    total = totals[:, -1:]
    if probs.device.type == "cpu" and not bool(((total > 0) & torch.isfinite(total)).all()):
        raise ValueError("A row's probabilities do not sum to a positive number; check the logits for NaN or all -inf.")
    target = u[:, None].to(torch.float64) * total
    block = _first_above(totals, target, sums)
    before = totals.gather(1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0.0)
    inside = block * _BLOCK + torch.arange(_BLOCK, device=probs.device)
    law = probs.gather(1, inside.clamp(max=vocab - 1)).to(torch.float64).masked_fill(inside >= vocab, 0.0)
    return (block * _BLOCK + _first_above(law.cumsum(1), target - before, law)).squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor, mass: Tensor) -> Tensor:
    """First column with positive mass whose cumulative sum exceeds target, else the last with positive mass; [n, 1].

    The last resort is for rounding: a target may reach the sum of the masses, as it is the same sum in another order.
    """
    columns = torch.arange(mass.shape[1], device=mass.device)
    last = torch.where(mass > 0, columns, 0).amax(1, keepdim=True)
    first = torch.where(cumulative > target, columns, mass.shape[1]).amin(1, keepdim=True)
    return torch.minimum(first, last)
