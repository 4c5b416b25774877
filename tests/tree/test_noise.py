from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vllm_specvlm.tree.noise import _mix, exponentials, position_keys

MASK, MASK32 = 2**64 - 1, 2**32 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def key_by_definition(seed: int, position: int) -> int:
    start = mix((mix((seed + GOLDEN) & MASK) + 0xD1342543DE82EF95) & MASK)
    return mix((start + (position + 1) * GOLDEN) & MASK)


def word_by_definition(key: int, token: int) -> int:
    x = (token * 0x9E3779B9 + key) & MASK32
    x = ((x ^ x >> 17) * 0xED5AD4BB) & MASK32
    x = (((x ^ x >> 11) + (key >> 32)) * 0xAC4C1B51) & MASK32
    x = ((x ^ x >> 15) * 0x31848BAB) & MASK32
    return x ^ x >> 14


def test_finaliser_gives_the_published_outputs_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + n * GOLDEN) & MASK for n in range(1, 5)]
    assert [mix(state) for state in states] == published
    signed = torch.tensor([state - 2**64 if state >> 63 else state for state in states])
    assert [word & MASK for word in _mix(signed).tolist()] == published


def test_keys_are_the_definition_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), *rng.integers(-(2**63), 2**63, 200, dtype=np.int64).tolist()]
    positions = [0, 0, 1, 2**31, 5, *rng.integers(0, 2**20, 200).tolist()]
    keys = position_keys(torch.tensor(seeds), torch.tensor(positions))
    assert [key & MASK for key in keys.tolist()] == [
        key_by_definition(*both) for both in zip(seeds, positions, strict=True)
    ]


def test_values_are_the_definition() -> None:
    """To the rounding of a float32 logarithm, relative: small values too, which rare tokens win with."""
    keys = position_keys(torch.arange(7), torch.arange(7) * 1000)
    tokens = torch.arange(0, 2**18, 37)
    values = exponentials(keys, tokens)
    assert values.dtype == torch.float32
    for key, row in zip(keys.tolist(), values.tolist(), strict=True):
        words = np.array([word_by_definition(key & MASK, int(t)) for t in tokens])
        v = np.minimum((words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32), 1 - 2.0**-24)
        assert row == pytest.approx((-np.log1p(-v.astype(np.float64))).tolist(), rel=1e-6)


def test_known_answers() -> None:
    """These never change: a request's seed must give the same text in every version."""
    keys = position_keys(torch.tensor([0, 0, 1, -7]), torch.tensor([0, 1, 0, 1000]))
    assert keys.tolist() == KNOWN_KEYS
    values = exponentials(keys, torch.tensor([[0], [1], [49151], [262143]]))
    assert values.flatten().tolist() == pytest.approx(KNOWN_VALUES, rel=2e-6)


KNOWN_KEYS = [-6743382788900179252, 5789961131444549499, 2806336378451995204, 8629827728328029237]
KNOWN_VALUES = [3.375112771987915, 0.5833735466003418, 0.9776030778884888, 0.4546826183795929]


def test_values_do_not_depend_on_what_stands_beside_them() -> None:
    """Bit by bit: over all of a vocabulary or some tokens, one key or many, in any order."""
    keys = position_keys(torch.arange(5), torch.arange(5))
    tokens = torch.arange(1003)
    whole = exponentials(keys, tokens)
    assert torch.equal(exponentials(keys[3:4], tokens)[0], whole[3])
    some = torch.randint(0, 1003, (5, 13), generator=torch.Generator().manual_seed(0))
    assert torch.equal(exponentials(keys, some), whole.gather(1, some))
    assert torch.equal(exponentials(keys.flip(0), tokens.flip(0)), whole.flip(0, 1))


def test_values_are_positive_and_finite() -> None:
    """Also at the ends of the 32 bits: the tokens of all 2^32 words cannot be tried, those of the ends can."""
    values = exponentials(position_keys(torch.arange(64), torch.arange(64)), torch.arange(1 << 16))
    assert bool((values >= 2.0**-33).all()) and bool((values < 17).all())
    for word, expected in ((0, 2.0**-33), (MASK32, 24 * math.log(2))):
        value = exponentials(torch.tensor([0]), torch.tensor([token_of_word(word)]))
        assert value.item() == pytest.approx(expected, rel=1e-6)


def token_of_word(word: int) -> int:
    """The counter that gives this word under key 0: the finaliser's inverse."""
    x = word ^ word >> 14 ^ word >> 28
    x = x * pow(0x31848BAB, -1, 2**32) & MASK32
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0xAC4C1B51, -1, 2**32) & MASK32
    x ^= x >> 11 ^ x >> 22
    x = x * pow(0xED5AD4BB, -1, 2**32) & MASK32
    x ^= x >> 17
    return x * pow(0x9E3779B9, -1, 2**32) & MASK32


# ---- quality, of the uniforms 1 - exp(-E)

N = 200_000
COUNT = torch.arange(N)


def chi_square(u: np.ndarray, *others: np.ndarray, bins: int) -> float:
    """Deviation of the joint histogram from the uniform law, in standard deviations of its chi-square law."""
    counts, _ = np.histogramdd(np.stack([u, *others], axis=1), bins=bins, range=[(0, 1)] * (1 + len(others)))
    expected = len(u) / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / (2 * (counts.size - 1)) ** 0.5)


def stream(seed: int | torch.Tensor, position: int | torch.Tensor, token: int | torch.Tensor) -> np.ndarray:
    """float64 [N]: each argument a number or N of them."""
    seeds, positions, tokens = (torch.as_tensor(x).expand(N) for x in (seed, position, token))
    values = exponentials(position_keys(seeds, positions), tokens[:, None]).flatten()
    return -np.expm1(-values.double().numpy())


STREAMS = {
    "token": stream(0, 0, COUNT),
    "token, another key": stream(5, 77, COUNT),
    "position": stream(0, COUNT, 3),
    "seed": stream(COUNT, 0, 1000),
    "high seeds": stream(COUNT << 32, 17, 5),
    "all": stream(COUNT, COUNT % 1000, COUNT % 49152),
}


@pytest.mark.parametrize("name", STREAMS)
def test_equidistribution(name: str) -> None:
    u = STREAMS[name]
    assert u.min() >= 0.0 and u.max() < 1.0
    assert abs(chi_square(u, bins=256)) < 5
    low = u[u < 1e-2] * 1e2  # the end that decides races
    assert abs(len(low) - N / 100) < 5 * (N / 100) ** 0.5
    assert abs(chi_square(low, bins=16)) < 5


PAIRS = {
    "neighbouring tokens": (stream(3, 3, COUNT), stream(3, 3, COUNT + 1)),
    "distant tokens": (stream(3, 3, COUNT), stream(3, 3, COUNT + (1 << 16))),
    "tokens at neighbouring positions": (stream(3, 8, COUNT), stream(3, 9, COUNT)),
    "tokens at neighbouring seeds": (stream(3, 8, COUNT), stream(4, 8, COUNT)),
    "neighbouring positions": (stream(3, COUNT, 11), stream(3, COUNT + 1, 11)),
    "neighbouring seeds": (stream(COUNT, 5, 11), stream(COUNT + 1, 5, 11)),
    "tokens over positions": (stream(3, COUNT, 11), stream(3, COUNT, 12)),
    "tokens over seeds": (stream(COUNT, 3, 11), stream(COUNT, 3, 12)),
    "seed against position": (stream(3, COUNT, 11), stream(COUNT, 3, 11)),
    "position against token": (stream(3, COUNT, 11), stream(3, 11, COUNT)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_independence(pair: str) -> None:
    a, b = PAIRS[pair]
    assert abs(chi_square(a, b, bins=20)) < 5
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / N**0.5


def test_independence_of_three() -> None:
    assert abs(chi_square(stream(9, COUNT, 4), stream(9, COUNT + 1, 4), stream(9, COUNT, 5), bins=8)) < 5
    assert abs(chi_square(stream(9, 2, COUNT), stream(9, 2, COUNT + 1), stream(9, 2, COUNT + 2), bins=8)) < 5


@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_positions_whose_counters_overlap_are_independent(steps: int) -> None:
    """Lower halves of keys are equal or some token steps apart for some pairs of positions in a long text."""
    low = 0x89ABCDEF
    for high in (1, *np.random.default_rng(steps).integers(-(2**31), 2**31, 8).tolist()):
        words = torch.tensor([low, (low + steps * 0x9E3779B9 & MASK32) + (high << 32)])
        a, b = (-np.expm1(-row.double().numpy()) for row in exponentials(words, COUNT))
        assert abs(chi_square(a[steps:], b[: N - steps], bins=20)) < 5, hex(high)


def test_control_reused_noise_shows() -> None:
    u = stream(3, 3, COUNT)
    assert chi_square(u, u, bins=20) > 100
    assert chi_square(u, 1 - u, bins=20) > 100
    assert chi_square(u**1.05, bins=256) > 5


def test_control_a_counter_without_its_upper_half_shows() -> None:
    """Two keys whose lower halves are one token step apart, mixed without the upper halves: shifted copies."""
    low = torch.tensor([5, 5 + 0x9E3779B9])
    a, b = (-np.expm1(-row.double().numpy()) for row in exponentials(low, COUNT))
    assert np.array_equal(a[1:], b[:-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_has_the_noise_of_the_cpu() -> None:
    seeds, positions, tokens = torch.arange(64) << 40, torch.arange(64), torch.arange(3000)
    here, there = position_keys(seeds, positions), position_keys(seeds.cuda(), positions.cuda())
    assert torch.equal(there.cpu(), here)
    torch.testing.assert_close(exponentials(there, tokens.cuda()).cpu(), exponentials(here, tokens), rtol=1e-6, atol=0)
