from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_specvlm import ops
from vllm_specvlm.tree import race as python
from vllm_specvlm.tree.noise import exponentials, position_keys
from vllm_specvlm.tree.race import NO_LAW

race = python.race


@pytest.fixture(autouse=True, params=["python", "operator"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test twice: of the plain definition, and of the operator that draws for the engine."""
    if request.param == "operator":
        monkeypatch.setitem(globals(), "race", ops.race)


def keys(count: int, seed: int = 11) -> torch.Tensor:
    """Of `count` positions of one request."""
    return position_keys(torch.full((count,), seed), torch.arange(count))


def random_laws(count: int, vocab: int, seed: int) -> torch.Tensor:
    return (3 * torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def deviation(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square of counts against their expectations, in standard deviations of its law."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


def tally(law: torch.Tensor, count: int, seed: int = 11) -> np.ndarray:
    """How often each token won `count` races of one law."""
    winners = race(law.expand(count, -1), keys(count, seed))
    return np.bincount(winners.numpy(), minlength=len(law))


def test_the_first_to_arrive_wins() -> None:
    laws, noise = random_laws(100, 700, 0), exponentials(keys(100), torch.arange(700))
    assert race(laws, keys(100)).tolist() == (noise.double() / laws.double()).argmin(1).tolist()


@pytest.mark.parametrize("vocab", [2, 20, 700])
def test_frequencies(vocab: int) -> None:
    law = np.random.default_rng(1).dirichlet([2.0] * vocab)
    n = 40_000
    assert abs(deviation(tally(torch.from_numpy(law).float(), n), law * n)) < 5


@pytest.mark.parametrize(("head", "tail", "tails"), [(0.9, 5e-4, 200), (0.5, 2.5e-3, 200), (1 - 2e-4, 1e-6, 200)])
def test_a_long_tail_gets_its_due(head: float, tail: float, tails: int) -> None:
    """A million draws from one likely token and many rare ones: no bias for or against the tail, nor inside it."""
    law = torch.full((tails + 1,), tail)
    law[0] = head
    n, counts = 1_000_000, np.zeros(tails + 1, dtype=np.int64)
    for part in range(10):
        counts += tally(law, n // 10, seed=part)
    for split in (counts[:1], counts[1:].reshape(10, -1).sum(1)):
        expected = n * (head if len(split) == 1 else tail * tails / 10)
        assert (abs(split - expected) < 5 * (expected * (1 - expected / n)) ** 0.5).all()


@pytest.mark.parametrize(("p", "share"), [(1e-7, 1.0), (2.0**-32, 0.9595), (2.0**-35, 0.1466)])
def test_rare_tokens_win_as_often_as_documented(p: float, share: float) -> None:
    """The probability that 32 bits give, summed over them: E_t / p_t < E_0, with P(E_0 > x) = exp(-x)."""
    bits = np.arange(min(2**32, int(60 * p * 2**32) + 60), dtype=np.float64)
    won = 2.0**-32 * np.exp(np.log1p(-(bits + 0.5) * 2.0**-32) / p).sum()
    assert won / p == pytest.approx(share, rel=1e-3)
    assert won == pytest.approx(2.0**-33 / np.sinh(2.0**-33 / p), rel=1e-3)


def test_control_six_bit_noise_shows() -> None:
    """The check of frequencies would see a coarse generator."""
    law, n = torch.tensor([0.9, *([0.1 / 50] * 50)]), 40_000
    noise = exponentials(keys(n), torch.arange(51))
    coarse = -torch.log1p(-((-torch.expm1(-noise) * 64).floor() + 0.5) / 64)
    counts = np.bincount((law / coarse).argmax(1).numpy(), minlength=51)
    assert deviation(counts, law.numpy() * n) > 20


@pytest.mark.parametrize("vocab", [7, 512, 1025])
def test_one_hot(vocab: int) -> None:
    hot = torch.tensor([0, vocab // 2, vocab - 1]).repeat(500)
    laws = torch.nn.functional.one_hot(hot, vocab).float()
    assert race(laws, keys(1500)).tolist() == hot.tolist()


@pytest.mark.parametrize("vocab", [9, 513, 2000])
def test_never_a_token_of_probability_zero(vocab: int) -> None:
    """Also where the others' probabilities are next to nothing, or sum to something else than one."""
    generator = torch.Generator().manual_seed(vocab)
    laws = torch.rand(300, vocab, generator=generator) * (torch.rand(300, vocab, generator=generator) < 0.1)
    laws[:, 0] = laws[:, -1] = 0.0
    laws[:, vocab // 2] += 1e-6
    laws[::3] *= 1e-30
    for seed in range(5):
        winners = race(laws, keys(300, seed))
        assert (laws.gather(1, winners[:, None]) > 0).all()


def test_scale_does_not_matter() -> None:
    laws = random_laws(50, 1200, 0)
    assert race(laws * 8, keys(50)).tolist() == race(laws / 1024, keys(50)).tolist()


def test_a_row_does_not_depend_on_the_others() -> None:
    """Whether its neighbours share its key or not."""
    laws, shared = random_laws(64, 1500, 3), keys(64)
    shared[20:40] = shared[20]
    together = race(laws, shared).tolist()
    assert together == [race(laws[i : i + 1], shared[i : i + 1]).item() for i in range(64)]
    assert together[10:30] == race(laws[10:30], shared[10:30]).tolist()


def test_large_vocabularies_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    laws, shared = random_laws(40, 3001, 4), keys(40)[torch.arange(40) % 7]
    whole = race(laws, shared).tolist()
    for elements in (7000, 100):
        monkeypatch.setattr("vllm_specvlm.tree.race._CHUNK_ELEMENTS", elements)
        assert race(laws, shared).tolist() == whole


def test_rows_of_a_wider_buffer() -> None:
    buffer = torch.rand(8, 2000, generator=torch.Generator().manual_seed(5))
    assert race(buffer[:, :1100], keys(8)).tolist() == race(buffer[:, :1100].contiguous(), keys(8)).tolist()


def test_no_rows() -> None:
    assert race(torch.empty(0, 5), keys(0)).shape == (0,)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_row_without_a_law_has_no_winner(bad: float) -> None:
    laws = torch.full((2, 4), 0.25)
    whole = race(laws, keys(2))
    laws[1] = bad
    assert race(laws, keys(2)).tolist() == [whole[0].item(), NO_LAW]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_draws_what_the_cpu_draws() -> None:
    """Rows tied to a float32's last bit aside, which random laws do not have."""
    laws = random_laws(64, 3000, 6)
    assert race(laws.cuda(), keys(64).cuda()).tolist() == race(laws, keys(64)).tolist()


# ---- coupling


def overlap(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """float [n]: 1 - TV of each pair of laws."""
    return torch.minimum(p, q).sum(1)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_laws_run_with_one_key_agree_as_often_as_proved(noise: float) -> None:
    """P(same winner) >= (1 - TV) / (1 + TV), for 40 pairs of laws of 30 tokens, 4,000 races each."""
    generator = torch.Generator().manual_seed(int(noise * 10))
    logits = 2 * torch.randn(40, 30, generator=generator)
    other = logits + noise * torch.randn(40, 30, generator=generator)
    for pair in range(40):
        p, q = (x[pair].softmax(-1).expand(4000, -1) for x in (logits, other))
        same = (race(p, keys(4000, pair)) == race(q, keys(4000, pair))).float().mean().item()
        closeness = overlap(p[:1], q[:1]).item()
        assert same > closeness / (2 - closeness) - 4 * 0.5 / 4000**0.5


def test_control_other_keys_agree_less_than_proved() -> None:
    p = random_laws(1, 30, 8).expand(4000, -1)
    same = (race(p, keys(4000, 0)) == race(p, keys(4000, 1))).float().mean().item()
    assert same == pytest.approx(float((p[0] ** 2).sum()), abs=0.04)
    assert same < 0.9


def test_shared_noise_is_the_same_noise() -> None:
    """Rows of one key share it on the CPU, and have it each on a GPU."""
    from vllm_specvlm.tree.race import _noise

    keys = position_keys(torch.tensor([3, 3, 9, 3]), torch.tensor([5, 5, 5, 6]))
    tokens = torch.arange(1000)
    assert torch.equal(_noise(keys, tokens, share=True), _noise(keys, tokens, share=False))
