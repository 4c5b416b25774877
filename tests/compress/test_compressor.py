"""What every compressor keeps to, whatever its kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vllm_specvlm.compress.compressor import Compressed, Compressor, CompressorConfig, build, count
from vllm_specvlm.compress.config import KINDS

HIDDEN = 48
SIZES = [1, 4, 36, 144, 576, 1369]
CONFIGS = [
    *map(CompressorConfig, KINDS),
    CompressorConfig("resampler", queries=5),
    CompressorConfig("global", queries=4),
    CompressorConfig("weight", ratio=10),
    CompressorConfig("prune", ratio=1),
    CompressorConfig("select", branches=(CompressorConfig("global"), CompressorConfig("none"))),
]

each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.as_dict()))


def picture(visual: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(visual, HIDDEN, generator=generator).to(dtype)
    return tokens, torch.randn(HIDDEN, generator=generator).to(dtype)


def made(config: CompressorConfig, seed: int = 0) -> Compressor:
    torch.manual_seed(seed)
    return build(config, HIDDEN).eval()


def same(one: Compressed, other: Compressed) -> bool:
    vectors = [result.global_vector for result in (one, other)]
    return (
        torch.equal(one.tokens, other.tokens)
        and torch.equal(one.cost, other.cost)
        and one.choice == other.choice
        and (vectors[0] is None) == (vectors[1] is None)
        and (vectors[0] is None or vectors[1] is None or torch.equal(vectors[0], vectors[1]))
    )


@each_config
@pytest.mark.parametrize("visual", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes(config: CompressorConfig, visual: int, dtype: torch.dtype) -> None:
    compressor = made(config).to(dtype)
    with torch.inference_mode():
        result = compressor(*picture(visual, dtype=dtype))
    run = config.branches[result.choice] if result.choice is not None else config
    left = count(run, visual)
    assert result.tokens.shape == (left, HIDDEN)
    assert (run.kind == "text" or left >= 1) and left <= count(config, visual) <= visual
    assert result.tokens.dtype == dtype
    assert result.cost.shape == () and result.cost.dtype == torch.float32
    assert result.tokens.isfinite().all()
    if run.kind in ("global", "adaptor"):
        assert result.global_vector is not None
        assert result.global_vector.shape == (HIDDEN,) and result.global_vector.dtype == dtype
    else:
        assert result.global_vector is None
    if config.kind != "select":
        assert result.choice is None and result.cost.item() == pytest.approx(left / visual)
    if config.kind in ("select", "weight"):
        assert result.probabilities is not None
        assert result.probabilities.shape == (len(config.branches),)
        assert result.probabilities.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (result.log_probability is None) == (config.kind != "select")


@each_config
@pytest.mark.parametrize("visual", [1, 4, 144])
def test_training_keeps_the_bound(config: CompressorConfig, visual: int) -> None:
    compressor = made(config).train()
    for seed in range(8):
        torch.manual_seed(seed)
        result = compressor(*picture(visual))
        run = config.branches[result.choice] if result.choice is not None else config
        assert result.tokens.shape[0] == count(run, visual) <= visual


@each_config
def test_serving_depends_on_the_picture_and_what_is_before_it_alone(config: CompressorConfig) -> None:
    compressor = made(config)
    asked = picture(144)
    with torch.inference_mode():
        alone = compressor(*asked)
        for seed, visual in ((1, 576), (2, 1)):
            compressor(*picture(visual, seed))
            torch.randn(3)
        assert same(alone, compressor(*asked))
        storage = torch.cat([picture(7, 3)[0], asked[0], picture(9, 4)[0]])
        assert same(alone, compressor(storage[7:151], asked[1]))
    assert same(alone, compressor(*asked))


@each_config
def test_serving_takes_nothing_from_the_random_generator(config: CompressorConfig) -> None:
    compressor = made(config)
    state = torch.get_rng_state()
    compressor(*picture(36))
    assert torch.equal(state, torch.get_rng_state())


def test_training_a_selection_is_random() -> None:
    """The negative control of the two tests above: they can fail."""
    compressor = made(CompressorConfig()).train()
    choices = {compressor(*picture(36)).choice for _ in range(40)}
    assert len(choices) > 1


@each_config
def test_state_survives_a_round_trip(config: CompressorConfig) -> None:
    one, other = made(config), made(config, seed=1)
    other.load_state_dict(one.state_dict())
    assert same(one(*picture(36)), other(*picture(36)))


@each_config
def test_does_not_write_into_the_picture(config: CompressorConfig) -> None:
    compressor = made(config).train()
    tokens, before = picture(36)
    kept = tokens.clone(), before.clone()
    compressor(tokens, before)
    assert torch.equal(tokens, kept[0]) and torch.equal(before, kept[1])


@each_config
def test_the_first_picture_has_nothing_before_it(config: CompressorConfig) -> None:
    result = made(config)(picture(36)[0], torch.zeros(HIDDEN))
    assert result.tokens.isfinite().all() and result.cost.isfinite()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_config
def test_cuda_agrees_with_the_cpu(config: CompressorConfig) -> None:  # pragma: no cover - needs a GPU
    compressor = made(config)
    here = compressor(*picture(144))
    tokens, before = (part.cuda() for part in picture(144))
    there = compressor.cuda()(tokens, before)
    assert there.choice == here.choice
    torch.testing.assert_close(there.tokens.cpu(), here.tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "before", "part"),
    [
        (torch.zeros(0, HIDDEN), torch.zeros(HIDDEN), "V of 1 or more"),
        (torch.zeros(1, 4, HIDDEN), torch.zeros(HIDDEN), "pass \\[V, H\\]"),
        (torch.zeros(4, HIDDEN), torch.zeros(3), "mean before a picture"),
        (torch.zeros(4, HIDDEN), torch.zeros(4, HIDDEN), "mean before a picture"),
    ],
)
def test_refuses_what_is_no_picture(tokens: Tensor, before: Tensor, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        made(CompressorConfig("pool"))(tokens, before)


def test_refuses_pictures_without_channels() -> None:
    with pytest.raises(ValueError, match="0 channels"):
        build(CompressorConfig("pool"), 0)
