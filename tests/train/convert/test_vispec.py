"""ViSpec heads see pictures as their formula says; without, on request, only their text part is converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.convert.checkpoints import HIDDEN, LLAMA, VOCABULARY, vispec, write
from tests.train.convert.comparison import assert_different, assert_same, caching, features, of_head, play
from tests.train.convert.reference import Pictures, Reference
from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.engine.feature_context import FeatureContext, Span
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

OUTPUT = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(8)) * HIDDEN**-0.5
LENGTH, DRAFTS = 24, 3
PLACES = ((4, 11), (15, 20))
"""Of two pictures in a text of LENGTH tokens."""


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt() -> tuple[Tensor, Tensor, Pictures]:
    """A target's features of all tokens but the last, the tokens and DRAFTS drafted ones, and pictures."""
    tokens = torch.randint(VOCABULARY, (LENGTH + DRAFTS,), generator=torch.Generator().manual_seed(5))
    pictures = [(start, stop, random(stop - start, HIDDEN, seed=start)) for start, stop in PLACES]
    return 2 * random(LENGTH - 1, HIDDEN, seed=6), tokens, pictures


def expected(reference: Reference) -> Tensor:
    """[text slots + DRAFTS, hidden] by the formula."""
    state, tokens, pictures = prompt()
    said, vector = reference.vispec_prompt(state, tokens[:LENGTH], pictures)
    rows = list(said.values())
    for at in range(LENGTH, LENGTH + DRAFTS):
        rows.append(reference.vispec(rows[-1][None], tokens[at : at + 1], torch.tensor([at - 1]), vector)[0])
    return torch.stack(rows)


@torch.no_grad()
def got(head: FeatureHead) -> Tensor:
    """The same of a head, fed as the engine feeds it."""
    state, tokens, pictures = prompt()
    assert head.config.own_embedding and head.config.reads_ahead
    visual = {start - 1: tokens for start, _, tokens in pictures}
    spans = [Span(str(start), start - 1, stop - 1) for start, stop, _ in pictures]
    context = FeatureContext(spans, np.zeros(64, dtype=bool), reads_ahead=True)

    def compress(span: Span) -> Compressed:
        found: Compressed = head.compressor(visual[span.start], torch.zeros(HIDDEN))
        return found

    slots = context.missing(LENGTH - 1, np.arange(LENGTH - 1), compress)
    pictured = torch.from_numpy(context.in_picture(slots))
    after, latest = context.global_vectors(slots) or (np.zeros(len(slots), dtype=bool), torch.zeros(0, HIDDEN))
    vectors = torch.zeros(len(slots), HIDDEN)
    vectors[torch.from_numpy(after)] = latest
    numbers, attend = torch.from_numpy(slots), caching()
    embeddings = head.embed_tokens(tokens[numbers + 1])
    left = torch.cat([context.compressed[span.start].tokens for span in spans])
    out = head(state[numbers], embeddings, numbers, attend, left, pictured, vectors)
    rows = list(out[~pictured])
    for at in range(LENGTH, LENGTH + DRAFTS):
        one, place = head.embed_tokens(tokens[at : at + 1]), torch.tensor([at - 1])
        rows.append(head(rows[-1][None], one, place, attend, vectors=vectors[-1:])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("queries", [2, 4])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_pictures_are_seen_as_the_formula_says(tmp_path: Path, qkv_bias: bool, queries: int) -> None:
    weights = vispec(qkv_bias=qkv_bias, queries=queries)
    result = convert(write(tmp_path, weights, LLAMA | {"qkv_bias": qkv_bias}), Wishes())
    found = got(result.head)
    assert len(found) == LENGTH - 1 - sum(stop - start for start, stop in PLACES) + DRAFTS
    assert_same(found @ OUTPUT.T, expected(Reference(weights, "layers.0")) @ OUTPUT.T)


@pytest.mark.parametrize("part", ["imadpt.q", "imadpt.v_proj.weight", "img_fc.weight"])
def test_control_other_adaptors_are_noticed(tmp_path: Path, part: str) -> None:
    weights = vispec()
    found = got(convert(write(tmp_path, weights), Wishes()).head)
    weights[part] = weights[part].flip(-1)
    other = expected(Reference(weights, "layers.0"))
    before = PLACES[0][0] - 1
    assert part == "img_fc.weight" or torch.allclose(found[:before], other[:before], atol=1e-4), "no picture yet"
    assert_different(found[before:] @ OUTPUT.T, other[before:] @ OUTPUT.T)


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


@pytest.mark.parametrize("text_only", [True, False])
def test_a_missing_tensor_is_named(tmp_path: Path, text_only: bool) -> None:
    weights = vispec()
    del weights["imadpt.k_proj.weight"]
    with pytest.raises(ValueError, match=r"lacks the tensor 'imadpt\.k_proj\.weight'"):
        convert(write(tmp_path, weights), Wishes(text_only=text_only))


@pytest.mark.parametrize("shape", [(1, 4, 16), (2, 4, 8), (2, 64)], ids=str)
def test_queries_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = vispec()
    weights["imadpt.q"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"'imadpt\.q' of '.*' has shape .* two or more queries"):
        convert(write(tmp_path, weights), Wishes())
