"""Counter-based noise: one exponential variable for each (seed, position, token), the same on every rank."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(word: int, bits: int) -> int:
    """The signed integer with the same bits: torch has wrap-around arithmetic for signed integers only."""
    return word - (1 << bits) if word >> (bits - 1) else word


_GOLDEN = _signed(0x9E3779B97F4A7C15, 64)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9, 64)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB, 64)
_STREAM = _signed(0xD1342543DE82EF95, 64)

_TOKEN_STEP = _signed(0x9E3779B9, 32)
_TOKEN_MULTIPLIER_1 = _signed(0xED5AD4BB, 32)
_TOKEN_MULTIPLIER_2 = _signed(0xAC4C1B51, 32)
_TOKEN_MULTIPLIER_3 = 0x31848BAB


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int32 or int64."""
    return (x >> by) & ((1 << (8 * x.itemsize - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words."""
    x = (x ^ _shift(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 27)) * _MULTIPLIER_2
    return x ^ _shift(x, 31)


def position_keys(seeds: Tensor, positions: Tensor) -> Tensor:
    """The key of each (seed, position): int64 [n] and int64 [n] give int64 [n].

    `seeds` are the requests' seeds (any int64), `positions` the positions of the tokens to be drawn in their request.
    Output number `position` of SplitMix64 (Steele, Lea, Flood 2014), started at a hash of the seed.
    """
    start = _mix(_mix(seeds + _GOLDEN) + _STREAM)
    return _mix(start + (positions + 1) * _GOLDEN)


def exponentials(keys: Tensor, tokens: Tensor) -> Tensor:
    """One exponential variable of mean 1 for each key and token: int64 [n] and int64 [k] or [n, k] give float32 [n, k].

    The value is a pure function of key and token id, whatever stands beside it. (Its 32 random bits are the same
    everywhere; the logarithm's last bit is the device's, and all ranks of an engine have one kind of device.)

    The bits are a 32-bit finaliser with three multiplications ("triple32", Wellons 2018) of a counter that starts at
    the key's lower half; the upper half enters before the second, so that positions whose counters overlap still have
    independent noise. With v = (bits + 1/2) / 2^32 the value is -log1p(-v): v keeps its relative precision near 0,
    where races are won by improbable tokens.

    The least value is 2^-33. So a token of probability p wins a race with probability 2^-33 / sinh(2^-33 / p): p to
    within 0.04% for p above 2.4e-9, 4% less at 2^-32 (2.3e-10), 85% less at 2^-35. All tokens below 2^-32 of a
    vocabulary of 150,000 hold at most 4e-5 together.
    """
    word = tokens.to(torch.int32) * _TOKEN_STEP + keys.to(torch.int32)[:, None]
    word ^= _shift(word, 17)
    word *= _TOKEN_MULTIPLIER_1
    word ^= _shift(word, 11)
    word += (keys >> 32).to(torch.int32)[:, None]
    word *= _TOKEN_MULTIPLIER_2
    word ^= _shift(word, 15)
    word *= _TOKEN_MULTIPLIER_3
    word ^= _shift(word, 14)
    minus_v = word.view(torch.uint32).to(torch.float32).add_(0.5).mul_(-(2.0**-32))
    # Rounding reaches 1, where the logarithm ends: stop at the float32 before it.
    return minus_v.clamp_(min=2.0**-24 - 1).log1p_().neg_()
