from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_specvlm.tree.draw import PURPOSE_ACCEPT, PURPOSE_DRAFT, _mix, uniforms

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def by_definition(seed: int, position: int, purpose: int) -> float:
    start = mix((mix((seed + GOLDEN) & MASK) + purpose * 0xD1342543DE82EF95) & MASK)
    return (mix((start + (position + 1) * GOLDEN) & MASK) >> 11) / 2**53


def test_finaliser_gives_the_published_outputs_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [(1234567 + n * GOLDEN) & MASK for n in range(1, 5)]
    assert [mix(state) for state in states] == published
    signed = torch.tensor([state - 2**64 if state >> 63 else state for state in states])
    assert [word & MASK for word in _mix(signed).tolist()] == published


def test_values_are_the_definition_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), *rng.integers(-(2**63), 2**63, 200, dtype=np.int64).tolist()]
    positions = [0, 0, 1, 2**31, 5, *rng.integers(0, 2**20, 200).tolist()]
    for purpose in (PURPOSE_ACCEPT, PURPOSE_DRAFT):
        u = uniforms(torch.tensor(seeds), torch.tensor(positions), purpose)
        assert u.dtype == torch.float64
        assert u.tolist() == [by_definition(s, p, purpose) for s, p in zip(seeds, positions, strict=True)]


def test_known_answers() -> None:
    """These never change: a request's seed must give the same text in every version."""
    u = uniforms(torch.tensor([0, 0, 1, -7]), torch.tensor([0, 1, 0, 1000]), PURPOSE_ACCEPT)
    assert u.tolist() == KNOWN


KNOWN = [0.6344404865186533, 0.3138744218659404, 0.15213179991213777, 0.4678238985614447]


def chi_square(u: np.ndarray, *others: np.ndarray, bins: int) -> float:
    """Deviation of the joint histogram from the uniform law, in standard deviations of its chi-square law."""
    counts, _ = np.histogramdd(np.stack([u, *others], axis=1), bins=bins, range=[(0, 1)] * (1 + len(others)))
    expected = len(u) / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / (2 * (counts.size - 1)) ** 0.5)


N = 200_000


def stream(seed: int | torch.Tensor, position: int | torch.Tensor, purpose: int = PURPOSE_ACCEPT) -> np.ndarray:
    seeds = torch.as_tensor(seed).expand(N)
    return uniforms(seeds, torch.as_tensor(position).expand(N), purpose).numpy()


COUNT = torch.arange(N)


@pytest.mark.parametrize(
    "u", [stream(0, COUNT), stream(COUNT, 0), stream(COUNT << 32, 17)], ids=["position", "seed", "high"]
)
def test_equidistribution(u: np.ndarray) -> None:
    assert u.min() >= 0.0 and u.max() < 1.0
    assert abs(chi_square(u, bins=256)) < 5


PAIRS = {
    "neighbouring positions": (stream(3, COUNT), stream(3, COUNT + 1)),
    "neighbouring seeds": (stream(COUNT, 5), stream(COUNT + 1, 5)),
    "purposes": (stream(3, COUNT), stream(3, COUNT, PURPOSE_DRAFT)),
    "purposes over seeds": (stream(COUNT, 2), stream(COUNT, 2, PURPOSE_DRAFT)),
    "seed against position": (stream(3, COUNT), stream(COUNT, 3)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_independence(pair: str) -> None:
    a, b = PAIRS[pair]
    assert abs(chi_square(a, b, bins=20)) < 5
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / N**0.5


def test_independence_of_three_positions() -> None:
    assert abs(chi_square(stream(9, COUNT), stream(9, COUNT + 1), stream(9, COUNT + 2), bins=8)) < 5


def test_control_a_reused_uniform_shows() -> None:
    u = stream(3, COUNT)
    assert chi_square(u, u, bins=20) > 100
    assert chi_square(u, 1 - u, bins=20) > 100
    assert chi_square(u**1.05, bins=256) > 5


def test_no_value_repeats() -> None:
    assert len(np.unique(np.concatenate([stream(0, COUNT), stream(1, COUNT), stream(COUNT + 2, 0)]))) == 3 * N
