"""The gate: what it draws, what reaches it, and what it learns."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from vllm_specvlm.compress.compressor import Compressor, CompressorConfig, build
from vllm_specvlm.compress.gate import straight_through

HIDDEN = 16
NOTHING = torch.zeros(HIDDEN)
DEAR, CHEAP = CompressorConfig("none"), CompressorConfig("pool", ratio=16)


def selection(*branches: CompressorConfig) -> Compressor:
    torch.manual_seed(0)
    return build(CompressorConfig("select", branches=branches, gate_hidden=16), HIDDEN)


def test_without_noise_training_chooses_what_serving_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module = selection(DEAR, CHEAP, CompressorConfig("text"), CompressorConfig("prune", ratio=4))
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0))  # noise -log 1 = 0
    seen = set()
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        tokens, before = torch.randn(16, HIDDEN, generator=generator), torch.randn(HIDDEN, generator=generator)
        served, trained = module.eval()(tokens, before), module.train()(tokens, before)
        assert trained.choice == served.choice == int(module.gate(tokens, before).argmax())
        assert torch.equal(trained.tokens, served.tokens)
        seen.add(served.choice)
    assert len(seen) > 1  # the pictures told the gate apart, or the equality would say little


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_training_draws_from_the_softmax_at_every_temperature(tau: float) -> None:
    module = selection(DEAR, CHEAP, CompressorConfig("prune", ratio=4)).train()
    module.tau = tau
    tokens = torch.randn(16, HIDDEN)
    draws = 2000
    with torch.no_grad():
        results = [module(tokens, NOTHING) for _ in range(draws)]
    shares = Counter(result.choice for result in results)
    for branch, probability in enumerate(results[0].probabilities.tolist()):
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert abs(shares[branch] / draws - probability) < 4.5 * deviation


def test_exploring_draws_all_branches_alike_and_leaves_the_gate_alone() -> None:
    module = selection(DEAR, CHEAP, CompressorConfig("prune", ratio=4)).train()
    module.gate.out.bias.data = torch.tensor([6.0, 0.0, 1.0])
    tokens, draws = torch.randn(16, HIDDEN), 2000
    assert Counter(module(tokens, NOTHING).choice for _ in range(draws))[0] > 0.9 * draws
    module.explore = True
    results = [module(tokens, NOTHING) for _ in range(draws)]
    shares = Counter(result.choice for result in results)
    assert all(abs(shares[branch] / draws - 1 / 3) < 4.5 * (2 / 9 / draws) ** 0.5 for branch in range(3))
    assert not any(r.cost.requires_grad or r.log_probability.requires_grad or r.tokens.requires_grad for r in results)
    assert module.eval()(tokens, NOTHING).choice == 0  # serving never explores


def test_the_factor_is_one_and_its_gradient_is_the_shares() -> None:
    logits = torch.tensor([0.3, 1.1, -0.4], requires_grad=True)
    noise = torch.tensor([1.0, -0.2, 0.1])
    branch, factor = straight_through(logits, noise, 0.5)
    assert branch == 0 and factor.item() == 1.0
    factor.backward()
    other = logits.detach().clone().requires_grad_()
    ((other + noise) / 0.5).softmax(0)[0].backward()
    torch.testing.assert_close(logits.grad, other.grad)


@pytest.mark.parametrize("through", ["tokens", "cost", "log_probability"])
def test_gradients_reach_the_gate(through: str) -> None:
    module = selection(DEAR, CHEAP).train()
    getattr(module(torch.randn(16, HIDDEN), torch.randn(HIDDEN)), through).sum().backward()
    for name, parameter in module.gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_only_the_drawn_branch_is_run_and_trained() -> None:
    module = selection(CompressorConfig("conv"), CompressorConfig("resampler")).train()
    result = module(torch.randn(16, HIDDEN), NOTHING)
    result.tokens.square().sum().backward()
    trained = [any(parameter.grad is not None for parameter in branch.parameters()) for branch in module.branches]
    assert trained == [index == result.choice for index in range(2)]


def test_the_global_vector_carries_the_factor_too() -> None:
    module = selection(CompressorConfig("global"), CompressorConfig("global", queries=3)).train()
    module(torch.randn(16, HIDDEN), NOTHING).global_vector.sum().backward()
    assert module.gate.out.weight.grad.abs().sum() > 0


def test_the_cost_grows_with_the_share_of_dear_branches() -> None:
    module = selection(DEAR, CHEAP, CompressorConfig("text")).eval()
    tokens = torch.randn(64, HIDDEN)
    costs = []
    torch.nn.init.zeros_(module.gate.out.weight)
    for logit in (-9.0, -1.0, 0.0, 1.0, 9.0):
        module.gate.out.bias.data = torch.tensor([logit, 0.0, 0.0])
        costs.append(module(tokens, NOTHING).cost.item())
    assert costs == sorted(costs) and len(set(costs)) == len(costs)
    assert costs[2] == pytest.approx((1 + 4 / 64 + 0) / 3)
    assert costs[0] >= 0 and costs[-1] <= 1
    module.gate.out.bias.data = torch.tensor([-90.0, -90.0, 0.0])
    assert module(tokens, NOTHING).cost.item() == pytest.approx(0.0, abs=1e-6)


def _train_on_the_mean(cost_weight: float) -> Tensor:
    """Probabilities after training a drafter that needs only the picture's mean, which every branch preserves."""
    module = selection(DEAR, CHEAP).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    pictures = torch.randn(8, 16, HIDDEN, generator=torch.Generator().manual_seed(1))
    for step in range(200):
        tokens = pictures[step % 8]
        result = module(tokens, NOTHING)
        loss = (result.tokens.mean(0) - tokens.mean(0)).square().sum() + cost_weight * result.cost
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()(pictures[0], NOTHING).probabilities.detach()


def test_a_cheap_branch_that_suffices_is_chosen_for_its_cost_and_only_for_that() -> None:
    untrained = selection(DEAR, CHEAP)(
        torch.randn(8, 16, HIDDEN, generator=torch.Generator().manual_seed(1))[0], NOTHING
    ).probabilities
    assert _train_on_the_mean(cost_weight=0.1)[1] > 0.9
    without = _train_on_the_mean(cost_weight=0.0)
    torch.testing.assert_close(without, untrained.detach(), atol=0.05, rtol=0.0)


def _needy(generator: torch.Generator) -> tuple[Tensor, bool]:
    """A picture, and whether its drafter needs the tokens themselves rather than their mean."""
    needy = bool(torch.randint(2, (), generator=generator))
    tokens = torch.randn(16, HIDDEN, generator=generator)
    tokens[:, 0] += 2.0 if needy else -2.0
    return tokens, needy


def _right_choices(*, score_function: bool) -> float:
    """Share of pictures for which the gate, trained on a loss that ignores the tokens' scale, chooses what is best."""
    module = selection(DEAR, CHEAP).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    baseline = 0.5
    for _ in range(300):
        tokens, needy = _needy(generator)
        result = module(tokens, NOTHING)
        scale = result.tokens.square().mean().sqrt()
        spread = (result.tokens / scale).var(0, correction=0).mean()  # 0 of one token, whatever its scale
        loss = (1.0 - spread if needy else 0.0 * spread) + 0.2 * result.cost
        total = loss
        if score_function:
            total = total + (loss.detach() - baseline) * result.log_probability
            baseline += 0.05 * (loss.item() - baseline)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    module.eval()
    held_out = [_needy(generator) for _ in range(100)]
    return sum((module(tokens, NOTHING).choice == 0) == needy for tokens, needy in held_out) / len(held_out)


def test_the_score_function_teaches_a_choice_per_picture() -> None:
    assert _right_choices(score_function=True) > 0.9


def test_the_factor_alone_cannot_teach_a_drafter_that_normalises() -> None:
    """The limit stated in Selection's docstring: the cost is all that the gate hears, so it is cheap where it hurts."""
    assert _right_choices(score_function=False) < 0.7


def test_a_mixture_is_the_weighted_mean_of_its_branches() -> None:
    torch.manual_seed(0)
    module = build(CompressorConfig("weight", ratio=4), HIDDEN).eval()
    tokens, before = torch.randn(64, HIDDEN), torch.randn(HIDDEN)
    result = module(tokens, before)
    parts = torch.stack([branch(tokens, before).tokens for branch in module.branches])
    torch.testing.assert_close(result.tokens, torch.einsum("b,bkh->kh", result.probabilities, parts))


def test_the_gate_sees_the_picture_and_what_is_before_it() -> None:
    module = selection(DEAR, CHEAP).eval()
    tokens, before = torch.randn(16, HIDDEN), torch.randn(HIDDEN)
    logits = module.gate(tokens, before)
    assert not torch.equal(logits, module.gate(tokens + torch.randn(HIDDEN), before))
    assert not torch.equal(logits, module.gate(tokens, torch.randn(HIDDEN)))
