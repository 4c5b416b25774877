"""Greedy and sampled answers of a target in training, many pictures at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.conversation import Batch, Conversation, collate, prompt_ids
from vllm_specvlm.zoo.language_model import IM_END
from vllm_specvlm.zoo.pictures import draw, sample_scene
from vllm_specvlm.zoo.questions import ask
from vllm_specvlm.zoo.target import TargetModel
from vllm_specvlm.zoo.vision import pixels


@torch.no_grad()
def speak(
    target: TargetModel,
    tokenizer: PreTrainedTokenizerFast,
    pictures: Sequence[Image.Image],
    questions: Sequence[str],
    *,
    limit: int = 128,
    temperatures: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Answers (token ids, the end token included) to one question per picture.

    ``limit`` bounds an answer's tokens; ``temperatures [len(questions)]`` is 0 for greedy rows (the default).
    Prompts are padded on the left, with positions and mask to match.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    longest = max(map(len, prompts))
    ids = torch.tensor([[IM_END] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    embedded = target.embed(ids, torch.stack([pixels(picture) for picture in pictures]))
    out = target.lm(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    said: list[torch.Tensor] = []
    done = torch.zeros(len(prompts), dtype=torch.bool)
    position = positions[:, -1:]
    for _ in range(limit):
        scores = out.logits[:, -1].float()
        if temperatures is not None:  # adding Gumbel noise and taking the best is sampling; without noise it is greedy
            uniform = torch.rand(scores.shape, generator=generator).clamp(min=1e-20)
            scores = scores - temperatures[:, None] * uniform.log().neg().log()
        last = scores.argmax(-1)
        said.append(last)
        done |= last == IM_END
        if done.all():
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        position = position + 1
        out = target.lm(
            input_ids=last[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    rows = torch.stack(said, 1).tolist()
    return [row[: row.index(IM_END) + 1] if IM_END in row else row for row in rows]


def answers(target: TargetModel, tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int) -> Batch:
    """``size`` pictures with one question each, answered by the target itself: half greedily, half sampled at
    temperature 1.
    """
    scenes = [sample_scene(rng, "train") for _ in range(size)]
    pictures = [draw(scene, rng) for scene in scenes]
    questions = [ask(scene, rng, "train").question for scene in scenes]
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    temperatures = torch.tensor([float(row % 2) for row in range(size)])
    said = speak(target, tokenizer, pictures, questions, temperatures=temperatures, generator=generator)
    conversations = []
    for question, answer in zip(questions, said, strict=True):
        before = prompt_ids(tokenizer, question)
        conversations.append(Conversation(before + answer, [False] * len(before) + [True] * len(answer)))
    return collate(pictures, conversations)
