"""Turns of question and answer as token sequences: what the chat template makes of them, and where the answers are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.language_model import IM_END, IMAGE_TOKEN_ID
from vllm_specvlm.zoo.pictures import Scene, Split, draw, sample_scene
from vllm_specvlm.zoo.questions import Turn, ask
from vllm_specvlm.zoo.vision import VISUAL_TOKENS, pixels

_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Conversation:
    """Token ids of one picture's conversation; ``spoken[i]`` says that token i belongs to an answer (its end token
    included).
    """

    ids: list[int]
    spoken: list[bool]


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right.

    Attributes
    ----------
    images:
        float32 ``[P, 3, 96, 96]``: the pictures of the first P conversations.
    ids:
        int64 ``[B, T]``; the picture is VISUAL_TOKENS image tokens.
    spoken:
        bool ``[B, T]``: tokens of answers, the only ones a model is asked to predict.
    """

    images: torch.Tensor
    ids: torch.Tensor
    spoken: torch.Tensor


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """Ids of a first question about a picture, up to where the answer starts."""
    head = tokenizer(_USER).input_ids + [IMAGE_TOKEN_ID] * VISUAL_TOKENS
    return head + tokenizer("\n" + question + _ASSISTANT).input_ids


def encode(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Turn]) -> Conversation:
    """All ``turns`` about one picture, as one sequence."""
    ids: list[int] = []
    spoken: list[bool] = []
    for index, turn in enumerate(turns):
        if index == 0:
            before = prompt_ids(tokenizer, turn.question)
        else:
            before = tokenizer("\n" + _USER + turn.question + _ASSISTANT).input_ids
        answer = [*tokenizer(turn.answer).input_ids, IM_END]
        ids += before + answer
        spoken += [False] * len(before) + [True] * len(answer)
    return Conversation(ids, spoken)


def sample_turns(scene: Scene, rng: random.Random, split: Split, words: int = 90) -> list[Turn]:
    """Questions about ``scene`` until questions and answers together have about ``words`` words."""
    turns: list[Turn] = []
    while sum(len(turn.question.split()) + len(turn.answer.split()) + 6 for turn in turns) < words:
        turns.append(ask(scene, rng, split))
    return turns


def collate(pictures: Sequence[Image.Image], conversations: Sequence[Conversation]) -> Batch:
    """Pad ``conversations`` and stack ``pictures``: those of the first conversations; later ones have none."""
    longest = max(len(conversation.ids) for conversation in conversations)
    ids = torch.full((len(conversations), longest), IM_END)
    spoken = torch.zeros(len(conversations), longest, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        length = len(conversation.ids)
        ids[row, :length] = torch.tensor(conversation.ids)
        spoken[row, :length] = torch.tensor(conversation.spoken)
    return Batch(torch.stack([pixels(picture) for picture in pictures]), ids, spoken)


def sample_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    size: int,
    split: Split = "train",
    extra: Sequence[Conversation] = (),
) -> Batch:
    """``size`` random pictures, each with several questions and their right answers, then the pictureless ``extra``."""
    pictures, conversations = [], []
    for _ in range(size):
        scene = sample_scene(rng, split)
        pictures.append(draw(scene, rng))
        conversations.append(encode(tokenizer, sample_turns(scene, rng, split)))
    return collate(pictures, [*conversations, *extra])
