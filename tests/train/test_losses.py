"""The menu of losses against sums written out, and what the head cannot draft."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.train.made import DRAFTED, HIDDEN, TableTarget
from vllm_specvlm.train import losses
from vllm_specvlm.train.recipe import LossRecipe

VOCABULARY = torch.arange(3, 3 + DRAFTED)


@pytest.fixture
def wanted() -> losses.Law:
    target = TableTarget()
    final = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1)) * 0.5
    logits = final @ target.output.T
    best = logits.argmax(-1)
    best[0] = 0  # not in the vocabulary
    return losses.law(final, target.output_rows(VOCABULARY), logits.logsumexp(-1), best, VOCABULARY)


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.randn(6, DRAFTED, generator=torch.Generator().manual_seed(2)).log_softmax(-1)


def test_the_law_is_the_targets_own(wanted: losses.Law) -> None:
    target = TableTarget()
    final = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1)) * 0.5
    whole = (final @ target.output.T).softmax(-1)
    torch.testing.assert_close(wanted.log_probabilities.exp(), whole[:, VOCABULARY])
    assert (wanted.log_probabilities.exp().sum(-1) < 0.999).all()
    assert wanted.best[0] == -1
    assert VOCABULARY[wanted.best[1]] == whole[1].argmax() or whole[1].argmax() not in VOCABULARY


def test_each_loss_is_its_sum(wanted: losses.Law, scores: torch.Tensor) -> None:
    p, q = wanted.log_probabilities.double().exp(), scores.double().exp()
    for row in range(6):
        ce = -sum(float(p[row, i]) * float(q[row, i].log()) for i in range(DRAFTED))
        entropy = -sum(float(p[row, i]) * float(p[row, i].log()) for i in range(DRAFTED))
        mass = float(p[row].sum())
        reverse = mass * sum(float(q[row, i]) * float((q[row, i] / (p[row, i] / mass)).log()) for i in range(DRAFTED))
        assert float(losses.ce(scores, wanted)[row]) == pytest.approx(ce, rel=1e-4)
        assert float(losses.kl(scores, wanted)[row]) == pytest.approx(ce - entropy, rel=1e-3, abs=1e-5)
        assert float(losses.reverse_kl(scores, wanted)[row]) == pytest.approx(reverse, rel=1e-3, abs=1e-5)
    hard = losses.hard_ce(scores, wanted)
    assert hard[0] == 0.0
    known = (wanted.best >= 0).nonzero().flatten()
    torch.testing.assert_close(hard[known], -scores[known, wanted.best[known]])


def test_kl_and_ce_pull_alike_and_vanish_at_the_target(wanted: losses.Law) -> None:
    logits = torch.zeros(6, DRAFTED, requires_grad=True)
    gradients = [
        torch.autograd.grad(loss(logits.log_softmax(-1), wanted).sum(), logits)[0] for loss in (losses.ce, losses.kl)
    ]
    torch.testing.assert_close(*gradients)
    own = wanted.log_probabilities.clone().requires_grad_()
    for loss in (losses.kl, losses.reverse_kl):
        (gradient,) = torch.autograd.grad(loss(own.log_softmax(-1), wanted).sum(), own, retain_graph=True)
        assert gradient.abs().max() < 1e-5


def test_smooth_l1() -> None:
    outputs, final = torch.zeros(2, 4), torch.tensor([[0.5, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(losses.smooth_l1(outputs, final), torch.tensor([0.125 / 4, 2.5 / 4]))


def test_weights_pick_and_scale(wanted: losses.Law, scores: torch.Tensor) -> None:
    outputs = final = torch.zeros(6, HIDDEN)
    nothing = {field.name: 0.0 for field in dataclasses.fields(LossRecipe)}
    recipe = LossRecipe(**(nothing | {"kl": 2.0, "hard_ce": 0.5}))
    found = losses.weighted(recipe, outputs, final, scores, wanted)
    assert list(found) == ["kl", "hard_ce"]
    torch.testing.assert_close(found["kl"], 2 * losses.kl(scores, wanted))


def test_places() -> None:
    vocabulary = torch.tensor([2, 5, 9])
    assert losses.places(torch.tensor([0, 2, 5, 6, 9, 11]), vocabulary).tolist() == [-1, 0, 1, -1, 2, -1]
