"""The layout of slots, on examples that can be followed by hand."""

from __future__ import annotations

import pytest
import torch

from tests.train.made import HIDDEN, TableTarget, head, lesson, marks
from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.train.lesson import drafted_slots
from vllm_specvlm.train.slots import lay_out
from vllm_specvlm.train.views import view

#        0         1
#        0123456789012345
TEXT = "..PPPPPP..aaaa.."


def test_what_is_drafted_from() -> None:
    slots, depths = drafted_slots(torch.tensor(marks("...aaaa..aa.a")))
    # Answer 3..6: its first token comes with the prefill; slot 2 predicts 4, slot 4 predicts 6. Answer 9..10: slot 8
    # predicts 10. An answer of one token has nothing to draft.
    assert slots.tolist() == [2, 3, 4, 8]
    assert depths.tolist() == [0, 1, 2, 0]


def test_one_picture() -> None:
    target = TableTarget()
    made = lesson(0, marks(TEXT), [(2, 6)], target)
    laid = lay_out([made], [[2]])
    assert laid.numbers.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11]]
    assert laid.is_visual.tolist() == [[False, False, True, True, False, False, False, False]]
    ids = made.ids.tolist()
    # Slot 1 has the embedding of a placeholder: none. Slots 4 to 7 do not exist.
    assert laid.next_ids.tolist() == [[ids[1], -1, -1, -1, ids[9], ids[10], ids[11], ids[12]]]
    assert laid.picture.tolist() == [[-1, -1, -1, -1, 0, 0, 0, 0]]
    assert laid.drafted.tolist() == [[5, 6, 7]] and laid.depths.tolist() == [[0, 1, 2]]
    assert laid.wanted.tolist() == [[ids[11], ids[12], ids[13]]]
    text = [0, 1, 4, 5, 6, 7]
    assert torch.equal(laid.features[0, text], made.features)
    assert not laid.features[0, [2, 3]].any()


def test_pictures_side_by_side_and_padding() -> None:
    target = TableTarget()
    two = lesson(1, marks("PPPqqq.aaa.Raaa"), [(0, 3), (3, 3), (11, 1)], target)
    short = lesson(2, marks(".aaa"), [], target)
    laid = lay_out([two, short], [[1, 3, 0], []])
    ids = two.ids.tolist()
    # The last picture comes before the second answer's first token: its slot 11 would be the first drafted one.
    assert two.pictures == [(0, 3), (3, 3), (11, 1)]
    assert laid.numbers[0].tolist() == [0, 3, 4, 5, 6, 7, 8, 9, 10, 12][: laid.numbers.shape[1]]
    assert laid.next_ids[0].tolist()[:5] == [-1, -1, -1, -1, ids[7]]
    assert laid.picture[0].tolist()[:5] == [-1, -1, -1, -1, 1]
    assert laid.numbers[1].tolist()[:2] == [0, 1] and laid.next_ids[1].tolist()[2:] == [-1] * (
        laid.next_ids.shape[1] - 2
    )
    assert laid.depths[1].tolist() == [0, 1] + [-1] * (laid.depths.shape[1] - 2)


def test_nothing_of_a_picture_is_left() -> None:
    laid = lay_out([lesson(0, marks(TEXT), [(2, 6)], TableTarget())], [[0]])
    assert laid.numbers.tolist() == [[0, 1, 8, 9, 10, 11]] and not laid.is_visual.any()


def test_global_vectors_reach_the_text_behind_their_picture() -> None:
    target = TableTarget()
    made = lesson(3, marks("..PPPP...QQQQ..aaaa"), [(2, 4), (9, 4)], target)
    seeing = head("global")
    seen = view(seeing, target, [made])  # type: ignore[arg-type]
    laid = seen.slots
    first, second = (picture.global_vector for picture in seen.compressed[0])
    assert first is not None and second is not None
    plain = target.embed(laid.next_ids.clamp(min=0)).masked_fill((laid.next_ids < 0)[..., None], 0.0)
    added = seen.embeddings - plain
    for column, number in enumerate(laid.numbers[0].tolist()):
        is_text = not laid.is_visual[0, column]
        wanted = second if number >= 13 else first if number >= 6 else torch.zeros(HIDDEN)
        torch.testing.assert_close(added[0, column], wanted if is_text else torch.zeros(HIDDEN), atol=1e-5, rtol=1e-5)


def test_a_picture_without_a_vector_leaves_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training as in the engine: see `test_global_vectors_are_the_latest_pictures`. Other lessons have no part."""
    target = TableTarget()
    lessons = [lesson(seed, marks("..PP..QQ..aa"), [(2, 2), (6, 2)], target) for seed in (1, 2)]
    vector = torch.arange(float(HIDDEN))
    given = iter([vector, None, None, None])
    seeing = head("pool")
    made = lambda tokens, before: Compressed.plain(tokens[:1], len(tokens), next(given))  # noqa: E731
    monkeypatch.setattr(seeing.compressor, "forward", made)
    seen = view(seeing, target, lessons)  # type: ignore[arg-type]
    laid = seen.slots
    plain = target.embed(laid.next_ids.clamp(min=0)).masked_fill((laid.next_ids < 0)[..., None], 0.0)
    added = seen.embeddings - plain
    for column, number in enumerate(laid.numbers[0].tolist()):
        wanted = vector if number >= 4 and not laid.is_visual[0, column] else torch.zeros(HIDDEN)
        torch.testing.assert_close(added[0, column], wanted, atol=1e-5, rtol=1e-5)
    assert not added[1].any()


def test_the_mean_before_a_picture_leaves_out_other_pictures(monkeypatch: object) -> None:
    target = TableTarget()
    made = lesson(4, marks("PP..QQ.aaa"), [(0, 2), (4, 2)], target)
    seeing = head("pool")
    given: list[torch.Tensor] = []
    seeing.compressor.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    view(seeing, target, [made])  # type: ignore[arg-type]
    assert not given[0].any()
    torch.testing.assert_close(given[1], target.embed(made.ids[2:4]).mean(0))
