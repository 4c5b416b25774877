"""Which slots a feature head can be fed, and what it sees."""

from __future__ import annotations

import numpy as np
import torch

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.engine.feature_context import FeatureContext, Span

PICTURE = Span("a", 3, 11)
"""Placeholders 3..10."""


def context(visible: list[int] = [], pictures: tuple[Span, ...] = (PICTURE,)) -> FeatureContext:  # noqa: B006
    marks = np.zeros(64, dtype=bool)
    marks[visible] = True
    return FeatureContext(pictures, marks)


def two_tokens(span: Span) -> Compressed:
    return Compressed.plain(torch.ones(2, 4), span.stop - span.start)


def test_a_picture_takes_its_first_slots_only() -> None:
    missing = context().missing(16, np.arange(0, 16), two_tokens)
    assert missing.tolist() == [0, 1, 2, 3, 4, 11, 12, 13, 14, 15]


def test_features_that_are_gone_leave_holes() -> None:
    assert context().missing(16, np.arange(13, 16), two_tokens).tolist() == [3, 4, 13, 14, 15]


def test_pictures_that_are_gone_leave_holes() -> None:
    assert context().missing(16, np.arange(0, 16), lambda span: None).tolist() == [0, 1, 2, 11, 12, 13, 14, 15]


def test_what_others_wrote_is_not_fed_again() -> None:
    assert context([0, 1, 2, 3]).missing(14, np.arange(11, 14), two_tokens).tolist() == [4, 11, 12, 13]


def test_a_picture_is_compressed_once() -> None:
    calls = []

    def once(span: Span) -> Compressed:
        calls.append(span)
        return two_tokens(span)

    seen = context()
    for root in (12, 13, 14):
        seen.missing(root, np.arange(root), once)
    assert calls == [PICTURE]


def test_a_gate_may_leave_nothing_of_a_picture() -> None:
    nothing = Compressed.plain(torch.ones(0, 4), 8)
    assert context().missing(13, np.arange(0, 13), lambda span: nothing).tolist() == [0, 1, 2, 11, 12]


def test_spans() -> None:
    seen = context([0, 1, 2, 3, 4, 11, 12])
    assert seen.spans(13) == [(0, 5), (11, 13)]
    assert seen.spans(12) == [(0, 5), (11, 12)]
    assert seen.spans(4) == [(0, 4)]
    assert context().spans(8) == []


def test_global_vectors_are_the_latest_pictures() -> None:
    spans = (PICTURE, Span("b", 20, 24))
    seen = context(pictures=spans)
    vectors = iter([torch.full((4,), 1.0), torch.full((4,), 2.0)])
    seen.missing(30, np.arange(30), lambda span: Compressed.plain(torch.ones(1, 4), 8, next(vectors)))
    seen.advance(30)
    assert not seen.compressed, "fed pictures are still held"
    found = seen.global_vectors(np.asarray([2, 10, 11, 19, 22, 24, 40]))
    assert found is not None
    assert found[0].tolist() == [False, False, True, True, False, True, True]
    assert found[1][:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert context().global_vectors(np.asarray([12])) is None


def test_overlapping_pictures_and_gaps_in_features() -> None:
    seen = context(pictures=(PICTURE, Span("sound", 4, 9)))
    missing = seen.missing(16, np.asarray([0, 2, 12, 15]), two_tokens)
    assert missing.tolist() == sorted(set(missing.tolist())) == [0, 2, 3, 4, 5, 12, 15]


def test_a_head_that_reads_ahead_has_its_tokens_in_the_last_slots() -> None:
    seen = FeatureContext((PICTURE,), np.zeros(64, dtype=bool), reads_ahead=True)
    missing = seen.missing(16, np.arange(0, 16), two_tokens)
    assert missing.tolist() == [0, 1, 2, 9, 10, 11, 12, 13, 14, 15]
    assert seen.first_token(PICTURE) == 9
    assert not seen.before_picture(np.asarray([1, 2, 11])).any()
    assert context().before_picture(np.asarray([1, 2, 11])).tolist() == [False, True, False]


def test_a_head_that_reads_ahead_leaves_the_slot_before_the_placeholders_alone() -> None:
    """That may lie in a block that requests with other pictures share."""
    seen = FeatureContext((PICTURE,), np.zeros(64, dtype=bool), reads_ahead=True)
    whole = seen.missing(12, np.arange(0, 12), lambda span: Compressed.plain(torch.ones(8, 4), 8))
    assert whole.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]


def test_a_picture_that_others_wrote_still_has_its_global_vector() -> None:
    """All of its slots came with a shared prefix: nothing of it is fed, and the text behind it needs its vector."""
    vector = torch.full((4,), 3.0)

    def whole(span: Span) -> Compressed:
        return Compressed.plain(torch.ones(8, 4), 8, vector)

    seen = context(list(range(12)))
    seen.has_vectors = True
    assert seen.missing(14, np.arange(12, 14), whole).tolist() == [12, 13]
    found = seen.global_vectors(np.asarray([12, 13]))
    assert found is not None and found[0].all() and torch.equal(found[1], torch.stack([vector, vector]))
    seen.advance(14)
    assert not seen.compressed, "a picture that was never fed is still held"
