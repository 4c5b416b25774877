"""One step's gradient: parts, processes, compressors and gates."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.train.made import TableTarget, head, lesson, marks
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.learning import Figures, learn
from vllm_specvlm.train.ranks import Ranks
from vllm_specvlm.train.recipe import DataRecipe, LossRecipe, Recipe, TrainingRecipe

TEXTS = ["..PPPPPP..aaaaaaaaa", "..PPPPPP..aaaa", "..PPPPPP.aaaaaa...aaa", "..PPPPPP.aa"]


def recipe(losses: LossRecipe | None = None, accumulate: int = 1) -> Recipe:
    training = TrainingRecipe(batch=4, pool=4, accumulate=accumulate, unroll=3)
    return Recipe("t", (DataRecipe("specvlm/reference"),), losses=losses or LossRecipe(ce=1.0), training=training)


def run(network: FeatureHead, given: Recipe, texts: list[str] = TEXTS) -> Figures:
    target = TableTarget()
    lessons = [lesson(seed, marks(text), [(2, 6)], target) for seed, text in enumerate(texts)]
    rows = target.output_rows(network.vocabulary)
    torch.manual_seed(3)
    return learn(network.train(), target, rows, lessons, given, Ranks(), nullcontext())  # type: ignore[arg-type]


def gradients(network: FeatureHead) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_a_batch_in_parts_has_the_same_gradient() -> None:
    whole, parts = head("resampler"), head("resampler")
    one, four = run(whole, recipe()), run(parts, recipe(accumulate=4))
    assert one.loss == pytest.approx(four.loss, rel=1e-5)
    assert one.tokens == four.tokens == 8 + 3 + 5 + 2 + 1
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_step_without_deep_slots_does_not_lower_the_mean_of_those_that_have_them() -> None:
    both, network = Figures(), head("resampler")
    deep = run(network, recipe())
    short = run(network, recipe(), ["..PPPPPP..aa", "..PPPPPP.aa"])
    both.add(deep, 1.0)
    both.add(short, 1.0)
    assert "last_agreement" in deep.parts and "last_agreement" not in short.parts
    assert both.means()["last_agreement"] == deep.parts["last_agreement"]
    assert both.means()["agreement"] == (deep.parts["agreement"] + short.parts["agreement"]) / 2


@pytest.mark.parametrize("kind", ["resampler", "conv", "weight", "global"])
def test_the_loss_reaches_the_compressor(kind: str) -> None:
    network = head(kind)
    run(network, recipe())
    reached = {name: bool(gradient.any()) for name, gradient in gradients(network).items()}
    learned = [name for name in reached if name.startswith("compressor.")]
    assert learned and all(reached[name] for name in [*learned, "visual.weight", "fuse.weight", "lm_head.weight"])


@pytest.mark.parametrize("part", ["gate_cost", "gate_score"])
def test_what_moves_a_gate(part: str) -> None:
    nothing: dict[str, Any] = {"gate_cost": 0.0, "gate_score": 0.0}
    silent, moved = head("select"), head("select")
    run(silent, recipe(LossRecipe(ce=1.0, **nothing)))
    run(moved, recipe(LossRecipe(ce=1.0, **(nothing | {part: 1.0}))))
    name = "compressor.gate.out.weight"
    # A head that normalises its input hardly feels the straight-through factor: hence the score function.
    assert gradients(moved)[name].abs().max() > 10 * gradients(silent)[name].abs().max()


def test_a_lower_cost_is_what_gate_cost_wants() -> None:
    network = head("select")
    optimizer = torch.optim.SGD(network.compressor.gate.parameters(), lr=5.0)
    shares = []
    for _ in range(30):
        optimizer.zero_grad()
        figures = run(network, recipe(LossRecipe(ce=1.0, gate_cost=1.0, gate_score=0.0)))
        shares.append(figures.parts["visual_share"])
        optimizer.step()
    assert shares[-1] < 0.5 * shares[0]


def test_losses_that_are_off_are_not_reported() -> None:
    figures = run(head("text"), recipe(LossRecipe(ce=0.0, smooth_l1=0.0, reverse_kl=1.0)))
    assert "reverse_kl" in figures.parts and not figures.parts.keys() & {"ce", "kl", "smooth_l1", "gate"}
    assert figures.loss == pytest.approx(figures.parts["reverse_kl"])


def test_a_step_that_no_slot_is_deep_enough_for_is_left_out() -> None:
    figures = run(head("text"), recipe(), texts=["..PPPPPP..aa"] * 4)
    assert figures.tokens == 4 and figures.loss > 0
