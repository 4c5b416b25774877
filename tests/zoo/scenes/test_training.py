"""What makes both stages resumable: a step's pictures depend on the seed and the step alone."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.scenes import sight, tasks
from vllm_specvlm.zoo.scenes.settings import COARSE, FINE, HIDDEN, WIDTH
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.tasks import MAIN_WORDS, SIDE_WORDS
from vllm_specvlm.zoo.scenes.train_sight import draw
from vllm_specvlm.zoo.scenes.train_words import FINE_EVERY, Batch, batches


def steps(sources: Sources, gguf: GgufFile, first: int, count: int) -> dict[int, Batch]:
    tokenizer = language_model.load_tokenizer(gguf)
    return dict(itertools.islice(batches(sources, tokenizer, 2, first, rank=0), count))


def test_a_resumed_run_sees_the_batches_it_would_have_seen(sources: Sources, gguf: GgufFile) -> None:
    whole, resumed = steps(sources, gguf, 0, 9), steps(sources, gguf, 6, 3)
    assert list(resumed) == [6, 7, 8]
    for step, batch in resumed.items():
        assert batch.rows.ids.equal(whole[step].rows.ids)
        assert batch.images.equal(whole[step].images) and batch.known.equal(whole[step].known)
    assert not whole[0].images.equal(whole[1].images)  # steps differ, so the comparison means something
    assert whole[FINE_EVERY - 1].setting is FINE and whole[0].setting is COARSE


def test_pictures_and_classes_fit_their_setting(sources: Sources) -> None:
    for setting in (COARSE, FINE):
        images, known = draw(sources, random.Random(0), 2, setting)
        assert images.shape == (2, 3, setting.side, setting.side)
        assert known.shape == (2, setting.tokens, 2)


def test_the_teacher_is_pleased_by_the_right_tokens_alone(sources: Sources, gguf: GgufFile) -> None:
    tokenizer = language_model.load_tokenizer(gguf)
    teacher = sight.Teacher(torch.randn(language_model.VOCAB, HIDDEN), tokenizer)
    sample = tasks.sample(sources, random.Random(3), "train", "count")
    known = sight.classes(sample.marks, COARSE)[None]
    assert known[..., 0].max() < len(MAIN_WORDS) and known[..., 1].max() < len(SIDE_WORDS)
    features = torch.zeros(1, COARSE.tokens, WIDTH)
    right, figures = teacher.loss(features, teacher.wanted(known), known)
    wrong, _ = teacher.loss(features, teacher.wanted(known).roll(1, 1), known)
    assert figures[2] == pytest.approx(0.0, abs=1e-6)
    assert wrong > right
