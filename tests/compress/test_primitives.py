"""What each kind makes of a picture whose answer is known."""

from __future__ import annotations

import pytest
import torch

from vllm_specvlm.compress.compressor import CompressorConfig, build
from vllm_specvlm.compress.learned_queries import LearnedQueries
from vllm_specvlm.compress.pruning import distinct

HIDDEN = 24
NOTHING = torch.zeros(HIDDEN)


def test_pruning_finds_what_stands_out_everywhere_in_the_picture() -> None:
    tokens = 0.1 * torch.randn(100, HIDDEN, generator=torch.Generator().manual_seed(0))
    odd = [3, 14, 29, 30, 49, 55, 61, 77, 80, 99]  # one in each stretch of ten
    tokens[odd] += 5.0
    assert distinct(tokens, 10).tolist() == odd
    result = build(CompressorConfig("prune", ratio=10), HIDDEN)(tokens, NOTHING)
    assert torch.equal(result.tokens, tokens[odd])


@pytest.mark.parametrize("visual", [1, 2, 5, 36, 143])
def test_pruned_tokens_are_ascending_one_a_stretch(visual: int) -> None:
    tokens = torch.randn(visual, HIDDEN, generator=torch.Generator().manual_seed(visual))
    for k in range(1, visual + 1):
        chosen = distinct(tokens, k)
        assert (chosen * k // visual).tolist() == list(range(k))


def test_pruning_a_picture_of_one_colour_keeps_its_number() -> None:
    assert build(CompressorConfig("prune", ratio=10), HIDDEN)(torch.ones(40, HIDDEN), NOTHING).tokens.shape[0] == 4


def test_pooling_averages_stretches_of_a_sequence() -> None:
    tokens = torch.arange(16.0)[:, None].expand(16, HIDDEN)
    pool = build(CompressorConfig("pool", ratio=4), HIDDEN)
    assert pool(tokens, NOTHING).tokens[:, 0].tolist() == [1.5, 5.5, 9.5, 13.5]


def test_convolution_starts_as_the_mean_and_fills_up_with_the_last_token() -> None:
    tokens = torch.arange(7.0)[:, None].expand(7, HIDDEN)
    result = build(CompressorConfig("conv", ratio=3), HIDDEN)(tokens, NOTHING)
    torch.testing.assert_close(result.tokens[:, 0], torch.tensor([1.0, 4.0, 6.0]))


def test_convolution_is_torchs() -> None:
    torch.manual_seed(0)
    conv = build(CompressorConfig("conv", ratio=3), HIDDEN)
    torch.nn.init.normal_(conv.taps)
    torch.nn.init.normal_(conv.mix.weight)
    tokens = torch.randn(12, HIDDEN)
    weight = conv.taps.T[:, None]  # [H, 1, stride]
    deep = torch.nn.functional.conv1d(tokens.T[None], weight, stride=3, groups=HIDDEN)[0].T
    torch.testing.assert_close(conv(tokens, NOTHING).tokens, conv.mix(deep))


def test_queries_read_weighted_means_of_the_tokens_at_first() -> None:
    torch.manual_seed(0)
    queries = LearnedQueries(3, 128)
    tokens = torch.rand(50, 128)
    answers = queries(tokens)
    assert (answers >= tokens.min(0).values - 1e-5).all() and (answers <= tokens.max(0).values + 1e-5).all()
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    torch.testing.assert_close(queries(tokens[:1]), tokens[:1].expand(3, 128))


def test_queries_are_plain_attention() -> None:
    torch.manual_seed(0)
    queries = LearnedQueries(2, 128)
    for linear in (queries.value, queries.out):
        torch.nn.init.normal_(linear.weight, std=0.1)
    tokens = torch.randn(9, 128)
    keys, values = queries.key(queries.norm(tokens)), queries.value(tokens)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        scores = queries.queries[:, part] @ keys[:, part].T / 8.0
        heads.append(scores.softmax(1) @ values[:, part])
    torch.testing.assert_close(queries(tokens), queries.out(torch.cat(heads, 1)))


def test_the_global_vector_is_the_last_answer() -> None:
    torch.manual_seed(0)
    module = build(CompressorConfig("global", queries=3), HIDDEN)
    tokens = torch.randn(9, HIDDEN)
    answers = module.attention(tokens)
    result = module(tokens, NOTHING)
    assert torch.equal(result.tokens, answers[:2])
    assert result.global_vector is not None and torch.equal(result.global_vector, answers[2])
    assert module(tokens[:1], NOTHING).tokens.shape == (1, HIDDEN)


def test_concatenation_is_its_branches_or_the_picture() -> None:
    torch.manual_seed(0)
    module = build(CompressorConfig("concat"), HIDDEN)
    tokens = torch.randn(60, HIDDEN)
    parts = [branch(tokens, NOTHING).tokens for branch in module.branches]
    assert torch.equal(module(tokens, NOTHING).tokens, torch.cat(parts))
    assert torch.equal(module(tokens[:4], NOTHING).tokens, tokens[:4])


@pytest.mark.parametrize("kind", ["conv", "resampler", "global", "concat", "weight"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    torch.manual_seed(0)
    module = build(CompressorConfig(kind), HIDDEN)
    result = module(torch.randn(36, HIDDEN), torch.randn(HIDDEN))
    loss = (result.tokens * torch.randn_like(result.tokens)).sum()
    if result.global_vector is not None:
        loss = loss + (result.global_vector * torch.randn(HIDDEN)).sum()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_resampler_learns_to_look() -> None:
    """Its answer must be the token that carries a mark; a mean of the picture would leave the loss at about 1."""
    torch.manual_seed(0)
    module = build(CompressorConfig("resampler", queries=1), HIDDEN)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(400):
        tokens = torch.randn(12, HIDDEN)
        marked = int(torch.randint(12, ()))
        tokens[:, 0] = 0.0
        tokens[marked, 0] = 8.0
        loss = (module(tokens, NOTHING).tokens[0, 1:] - tokens[marked, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
