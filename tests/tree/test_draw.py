from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_specvlm.tree.draw import PURPOSE_ACCEPT, draw, uniforms

BELOW_ONE = 1.0 - 2.0**-53


def u64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("vocab", [1, 2, 511, 512, 513, 1024, 1300, 20_000])
def test_inverse_of_the_cumulative_law(vocab: int) -> None:
    """Against numpy, on laws in multiples of a power of two, where all sums are exact."""
    rng = np.random.default_rng(vocab)
    counts = rng.multinomial(2**16, rng.dirichlet([0.3] * vocab), size=16)
    u = rng.integers(0, 2**20, 16) / 2**20
    expected = [np.searchsorted(np.cumsum(c / 2**16), x, side="right") for c, x in zip(counts, u, strict=True)]
    assert draw(torch.from_numpy(counts / 2**16).float(), torch.from_numpy(u)).tolist() == expected


def test_boundaries_belong_to_the_next_token() -> None:
    law = torch.tensor([[0.25, 0.5, 0.25]])
    edges = [0.0, 0.25 - 2.0**-54, 0.25, 0.75 - 2.0**-53, 0.75, BELOW_ONE]
    assert draw(law.expand(6, -1), u64(*edges)).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("vocab", [7, 512, 1025])
@pytest.mark.parametrize("u", [0.0, 5e-324, 0.5, BELOW_ONE])
def test_one_hot(vocab: int, u: float) -> None:
    hot = [0, vocab // 2, vocab - 1]
    laws = torch.nn.functional.one_hot(torch.tensor(hot), vocab).float()
    assert draw(laws, u64(u, u, u)).tolist() == hot


@pytest.mark.parametrize("vocab", [9, 513, 2000])
def test_never_a_token_of_probability_zero(vocab: int) -> None:
    """Also where float32 laws do not sum to one, and at the ends of the unit interval."""
    generator = torch.Generator().manual_seed(vocab)
    laws = torch.rand(300, vocab, generator=generator) * (torch.rand(300, vocab, generator=generator) < 0.1)
    laws[:, -1] = 0.0
    laws[:, 0] = 0.0
    laws[:, vocab // 2] += 1e-6
    laws = laws / laws.sum(-1, keepdim=True) * (1 + 3e-5)
    for u in (0.0, 5e-324, 0.37, 0.999999, BELOW_ONE):
        tokens = draw(laws, torch.full((300,), u, dtype=torch.float64))
        assert (laws.gather(1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize("vocab", [300, 600, 1025])
def test_rounding_at_the_end_of_the_interval_stays_inside_the_vocabulary(vocab: int) -> None:
    """Probabilities of many magnitudes, so that a block may add up to less in another order."""
    laws = torch.rand(3000, vocab, generator=torch.Generator().manual_seed(vocab)) ** 20
    tokens = draw(laws, torch.full((3000,), BELOW_ONE, dtype=torch.float64))
    assert int(tokens.max()) < vocab
    assert (laws.gather(1, tokens[:, None]) > 0).all()


def test_ends_give_the_first_and_the_last_token_with_mass() -> None:
    law = torch.zeros(2, 3000)
    law[:, 700], law[:, 1500], law[:, 2500] = 1e-30, 1.0, 1e-3
    assert draw(law, u64(0.0, BELOW_ONE)).tolist() == [700, 2500]


def test_scale_does_not_matter() -> None:
    law = torch.rand(50, 1200, generator=torch.Generator().manual_seed(0))
    u = uniforms(torch.arange(50), torch.zeros(50, dtype=torch.int64), PURPOSE_ACCEPT)
    assert draw(law * 8, u).tolist() == draw(law / 1024, u).tolist()


@pytest.mark.parametrize("vocab", [20, 700])
def test_frequencies(vocab: int) -> None:
    law = np.random.default_rng(1).dirichlet([2.0] * vocab)
    n = 40_000
    u = uniforms(torch.full((n,), 11), torch.arange(n), PURPOSE_ACCEPT)
    tokens = draw(torch.from_numpy(law).float().expand(n, -1), u).numpy()
    expected = law / law.sum() * n
    statistic = ((np.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum()
    assert abs(statistic - (vocab - 1)) / (2 * (vocab - 1)) ** 0.5 < 5


def test_a_row_does_not_depend_on_the_others() -> None:
    laws = torch.rand(64, 1500, generator=torch.Generator().manual_seed(3)).softmax(-1)
    u = uniforms(torch.arange(64), torch.arange(64), PURPOSE_ACCEPT)
    together = draw(laws, u).tolist()
    assert together == [draw(laws[i : i + 1], u[i : i + 1]).item() for i in range(64)]
    assert together[10:20] == draw(laws[10:20], u[10:20]).tolist()


def test_large_vocabularies_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = torch.rand(40, 3001, generator=torch.Generator().manual_seed(4))
    u = uniforms(torch.arange(40), torch.arange(40), PURPOSE_ACCEPT)
    whole = draw(laws, u).tolist()
    monkeypatch.setattr("vllm_specvlm.tree.draw._CHUNK_ELEMENTS", 7000)
    assert draw(laws, u).tolist() == whole


def test_rows_of_a_wider_buffer() -> None:
    buffer = torch.rand(8, 2000, generator=torch.Generator().manual_seed(5))
    u = uniforms(torch.arange(8), torch.arange(8), PURPOSE_ACCEPT)
    assert draw(buffer[:, :1100], u).tolist() == draw(buffer[:, :1100].contiguous(), u).tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_draws_what_the_cpu_draws() -> None:
    laws = torch.rand(64, 3000, generator=torch.Generator().manual_seed(6)).softmax(-1)
    seeds, positions = torch.arange(64) << 40, torch.arange(64)
    here = uniforms(seeds, positions, PURPOSE_ACCEPT)
    there = uniforms(seeds.cuda(), positions.cuda(), PURPOSE_ACCEPT)
    assert torch.equal(there.cpu(), here)
    assert draw(laws.cuda(), there).tolist() == draw(laws, here).tolist()


def test_no_rows() -> None:
    assert draw(torch.empty(0, 5), u64()).shape == (0,)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_row_without_a_law_is_refused(bad: float) -> None:
    laws = torch.full((2, 4), 0.25)
    laws[1] = bad
    with pytest.raises(ValueError, match="do not sum to a positive number"):
        draw(laws, u64(0.1, 0.1))
