"""EAGLE-3 heads compute after conversion what the published formula says, and read the layers that vLLM reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.convert.checkpoints import (
    DRAFT,
    HIDDEN,
    LAYERS,
    LLAMA,
    VOCABULARY,
    eagle3,
    speculators,
    write,
    write_target,
)
from tests.train.convert.comparison import assert_different, assert_same, features, of_head, play
from tests.train.convert.reference import Reference, rms
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.convert import target as targets
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

CONFIG = LLAMA | {"draft_vocab_size": DRAFT}
LIBRARY = {"draft_vocab_size": DRAFT, "eagle_aux_hidden_state_layer_ids": [1, 5, 8], "target_hidden_size": None}


def converted(source: Path, out: Path, wishes: Wishes) -> FeatureHead:
    result = convert(source, wishes)
    head_checkpoint.save(out, result.head, result.target, result.provenance)
    return head_checkpoint.load(out)[0]


def logits_of(head: FeatureHead) -> Tensor:
    step = of_head(head, torch.empty(0))
    return play(step, head.state(features(3 * HIDDEN)), head.logits)


def expected(weights: dict[str, Tensor], prefix: str, features_: Tensor | None = None, **changed: bool) -> Tensor:
    reference = Reference(weights, prefix, **changed)
    state = reference.linear("fc", features(3 * HIDDEN) if features_ is None else features_)
    return play(reference.eagle3, state, lambda x: reference.linear("lm_head", rms(x, weights["norm.weight"])))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["midlayer", "layers.0"])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_those_of_the_formula(tmp_path: Path, kind: str, prefix: str, bias: bool) -> None:
    weights = eagle3(prefix=prefix, bias=bias)
    source = write(tmp_path / "source", weights, CONFIG, kind)
    got = logits_of(converted(source, tmp_path / "out", Wishes(layers=(2, 6, 9))))
    assert_same(got, expected(weights, prefix))
    assert_different(got, expected(weights, prefix, swapped=True))
    assert_different(got, expected(weights, prefix, norm_before_residual=True))
    reordered = features(3 * HIDDEN).roll(HIDDEN, dims=1)
    assert_different(got, expected(weights, prefix, reordered))


@pytest.mark.parametrize("before", [False, True])
def test_a_head_of_the_speculators_library(tmp_path: Path, before: bool) -> None:
    weights = eagle3(prefix="layers.0")
    config = speculators("eagle3", norm_before_residual=before, norm_before_fc=False, **LIBRARY)
    head = converted(write(tmp_path / "source", weights, config), tmp_path / "out", Wishes())
    assert head.config.feature_layers == (1, 5, 8)
    got = logits_of(head)
    assert_same(got, expected(weights, "layers.0", norm_before_residual=before))
    assert_different(got, expected(weights, "layers.0", norm_before_residual=not before))


def test_tokens_are_those_of_d2t(tmp_path: Path) -> None:
    weights = eagle3()
    head = convert(write(tmp_path, weights, CONFIG), Wishes(layers=(2, 6, 9))).head
    assert head.vocabulary.tolist() == weights["t2d"].nonzero().flatten().tolist()
    assert (head.config.vocabulary, head.config.target_vocabulary) == (DRAFT, VOCABULARY)


def test_a_whole_vocabulary_needs_no_d2t(tmp_path: Path) -> None:
    weights = eagle3()
    del weights["d2t"], weights["t2d"]
    weights.linear("lm_head", VOCABULARY, HIDDEN)
    head = convert(write(tmp_path, weights), Wishes(layers=(2, 6, 9))).head
    assert head.vocabulary.tolist() == list(range(VOCABULARY))


def test_without_an_output_layer_the_targets_is_used(tmp_path: Path) -> None:
    weights = eagle3()
    for name in ("d2t", "t2d", "lm_head.weight"):
        del weights[name]
    assert convert(write(tmp_path, weights), Wishes(layers=(2, 6, 9))).head.config.vocabulary is None


def test_the_default_layers_are_vllms(tmp_path: Path) -> None:
    interfaces = pytest.importorskip("vllm.model_executor.models.interfaces")
    model = type("Model", (), {"model": type("Decoder", (), {"layers": [None] * LAYERS})()})()
    theirs = interfaces.SupportsEagle3.get_eagle3_default_aux_hidden_state_layers(model)
    target = targets.of_folder(write_target(tmp_path / "target"))
    head = convert(write(tmp_path / "source", eagle3(), CONFIG), Wishes(target=target)).head
    assert head.config.feature_layers == tuple(theirs) == (2, LAYERS // 2, LAYERS - 3)


def test_vllm_means_the_states_that_enter() -> None:
    interfaces = pytest.importorskip("vllm.model_executor.models.interfaces")
    mixin = interfaces.EagleModelMixin()
    mixin.aux_hidden_state_layers = (2,)
    hidden = torch.zeros(1)
    seen: list[list[Tensor]] = []
    states: list[Tensor] = []
    mixin._maybe_add_hidden_state(states, 0, hidden, None)  # as in llama.py: what enters layer 0 is number 0
    for layer in range(4):
        hidden = hidden + 10**layer
        mixin._maybe_add_hidden_state(states, layer + 1, hidden, None)
        seen.append(list(states))
    assert [state.item() for state in states] == [11]  # layers 0 and 1 have run, layer 2 has not
    assert [len(found) for found in seen] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}, (1, 5, 8)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 6, 9], "use_aux_hidden_state": True}}, (2, 6, 9)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, (2, 6, 9)),
        ({"eagle_aux_hidden_state_layer_ids": [1, 6, LAYERS]}, (1, 6, LAYERS)),
    ],
)
def test_layers_that_the_source_names(tmp_path: Path, given: dict[str, Any], found: tuple[int, ...]) -> None:
    target = targets.of_folder(write_target(tmp_path / "target"))
    source = write(tmp_path / "source", eagle3(), CONFIG | given)
    assert convert(source, Wishes(target=target)).head.config.feature_layers == found
    assert convert(source, Wishes(target=target, layers=(3, 4, 5))).head.config.feature_layers == (3, 4, 5)


@pytest.mark.parametrize(
    ("given", "wishes", "said"),
    [
        ({}, Wishes(), "does not say which layers .* give --target"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 8]}}, Wishes(), "1 5 8 or --layers 2 6 9"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, Wishes(), "no middle layers"),
        ({"eagle_aux_hidden_state_layer_ids": [5, 1, 8]}, Wishes(), r"\[5, 1, 8\] are not ascending"),
        ({}, Wishes(layers=(2, 6)), r"'fc.weight' .* \(64, 192\), .* \(64, 128\)"),
        ({"target_hidden_size": 128}, Wishes(layers=(2, 6, 9)), "64 wide and its target 128"),
    ],
)
def test_layers_that_cannot_be(tmp_path: Path, given: dict[str, Any], wishes: Wishes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert(write(tmp_path, eagle3(), CONFIG | given), wishes)


def test_a_target_that_is_not_deep_enough(tmp_path: Path) -> None:
    target = targets.of_folder(write_target(tmp_path / "target"))
    with pytest.raises(ValueError, match="enters layer 30 of a target of 12"):
        convert(write(tmp_path / "source", eagle3(), CONFIG), Wishes(target=target, layers=(2, 6, 30)))
