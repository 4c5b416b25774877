"""EAGLE-1 heads compute after conversion what the published formula says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.convert.checkpoints import HIDDEN, LLAMA, VOCABULARY, Weights, eagle1, speculators, write
from tests.train.convert.comparison import assert_different, assert_same, features, of_head, play
from tests.train.convert.reference import Reference
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

OUTPUT = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(8)) * HIDDEN**-0.5
"""The target's output layer, which such a head uses."""


def converted(source: Path, out: Path) -> FeatureHead:
    """The head as it comes back from the disk."""
    result = convert(source, Wishes())
    head_checkpoint.save(out, result.head, result.target, result.provenance)
    return head_checkpoint.load(out)[0]


def logits_of(head: FeatureHead) -> Tensor:
    assert head.config.vocabulary is None
    step = of_head(head, torch.empty(0))
    return play(step, head.state(features(HIDDEN)), lambda state: head.norm_output(state) @ OUTPUT.T)


def expected(weights: dict[str, Tensor], swapped: bool = False) -> Tensor:
    reference = Reference(weights, "layers.0", swapped=swapped)
    return play(reference.eagle1, features(HIDDEN), lambda state: state @ OUTPUT.T)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, False), (False, False), (False, True)])
def test_logits_are_those_of_the_formula(tmp_path: Path, kind: str, bias: bool, qkv_bias: bool) -> None:
    weights = eagle1(bias=bias, qkv_bias=qkv_bias)
    source = write(tmp_path / "source", weights, LLAMA | {"bias": bias, "qkv_bias": qkv_bias}, kind)
    got = logits_of(converted(source, tmp_path / "out"))
    assert_same(got, expected(weights))
    assert_different(got, expected(weights, swapped=True))


def test_a_head_of_the_speculators_library(tmp_path: Path) -> None:
    weights = eagle1()
    theirs = {"fc.": "fusion_fc.", "layers.0.": "transformer."}
    renamed = {
        next((name.replace(old, new) for old, new in theirs.items() if name.startswith(old)), name): tensor
        for name, tensor in weights.items()
    }
    architecture = {"transformer_layer_architecture": "LlamaDecoderLayer", "layernorms": False}
    config = speculators("eagle", fusion_bias=True, **architecture)
    got = logits_of(converted(write(tmp_path / "source", renamed, config), tmp_path / "out"))
    assert_same(got, expected(weights))


def test_the_features_are_what_leaves_the_final_norm(tmp_path: Path) -> None:
    head = convert(write(tmp_path, eagle1()), Wishes()).head
    assert head.config.feature_layers == ()
    torch.testing.assert_close(head.state(features(HIDDEN)), features(HIDDEN))


def test_dtypes_are_kept(tmp_path: Path) -> None:
    weights = Weights(1)
    weights.update({name: tensor.half() for name, tensor in eagle1().items()})
    head = convert(write(tmp_path, weights), Wishes()).head
    assert {tensor.dtype for tensor in head.state_dict().values()} == {torch.float16}


def test_an_output_layer_of_its_own(tmp_path: Path) -> None:
    weights = eagle1()
    weights.linear("lm_head", VOCABULARY, HIDDEN)
    head = convert(write(tmp_path, weights), Wishes()).head
    assert head.config.vocabulary == VOCABULARY
    assert torch.equal(head.lm_head.weight, weights["lm_head.weight"])
    assert head.vocabulary.tolist() == list(range(VOCABULARY))
