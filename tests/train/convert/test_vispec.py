"""Of a ViSpec head the text part is converted, on request, and is exact where there is no picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.convert.checkpoints import HIDDEN, LLAMA, VOCABULARY, vispec, write
from tests.train.convert.comparison import assert_different, assert_same, features, of_head, play
from tests.train.convert.reference import Reference
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

OUTPUT = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(8)) * HIDDEN**-0.5


def test_it_is_refused_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ViSpec head .* --text-only"):
        convert(write(tmp_path, vispec()), Wishes())


@pytest.mark.parametrize("bias", [True, False])
def test_its_text_part_is_that_of_the_formula(tmp_path: Path, bias: bool) -> None:
    weights = vispec(bias=bias)
    result = convert(write(tmp_path, weights, LLAMA | {"bias": bias}), Wishes(text_only=True))
    got = play(of_head(result.head, torch.empty(0)), features(HIDDEN), lambda state: state @ OUTPUT.T)

    def expected(vector: torch.Tensor) -> torch.Tensor:
        reference = Reference(weights, "layers.0")
        return play(lambda *slots: reference.vispec(*slots, vector), features(HIDDEN), lambda state: state @ OUTPUT.T)

    assert_same(got, expected(torch.zeros(HIDDEN)))
    assert_different(got, expected(torch.ones(HIDDEN)))
    assert any("does not see" in note for note in result.notes)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = vispec()
    del weights["imadpt.k_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks the tensor 'imadpt\.k_proj\.weight'"):
        convert(write(tmp_path, weights), Wishes(text_only=True))
