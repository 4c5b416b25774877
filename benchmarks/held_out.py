"""Questions never trained on, as a chat and as `LLM.generate` takes them, with the kind of task of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Asked:
    """A question about a picture."""

    messages: list[dict[str, Any]]
    """The chat so far; a part `{"type": "image"}` stands for the picture."""
    picture: Image
    kind: str
    prompt: dict[str, Any]
    """The same for `LLM.generate`."""


def questions(target: str, count: int, seed: int, of: str | None = None) -> list[Asked]:
    """`count` held-out questions about pictures, kinds mixed.

    Args:
        target: name or folder; its chat template is used. `specvlm/scenes-*` is asked the six tasks of its committed
            test set, in dialogues after right answers to the questions before; any other what `zoo.prompts` asks.
        count: at most so many; the scenes' test set ends.
        of: another target, whose questions are asked in the place of the target's own.
        seed: of `zoo.prompts`, and of the order of the scenes.
    """
    from transformers import AutoTokenizer

    from vllm_specvlm import zoo

    tokenizer = AutoTokenizer.from_pretrained(zoo.resolve(target))
    made = []
    for messages, picture, kind in (_scenes if (of or target).startswith("specvlm/scenes-") else _shapes)(count, seed):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        made.append(Asked(messages, picture, kind, {"prompt": text, "multi_modal_data": {"image": picture}}))
    return made


def again(target: str, asked: Sequence[Asked], answers: Sequence[Sequence[int]]) -> list[Asked]:
    """The same chats after these answers (their token ids), asked the same once more: text that repeats itself.

    The second question shows no picture of its own.
    """
    from transformers import AutoTokenizer

    from vllm_specvlm import zoo

    tokenizer = AutoTokenizer.from_pretrained(zoo.resolve(target))
    made = []
    for each, answer in zip(asked, answers, strict=True):
        said = {"type": "text", "text": tokenizer.decode(answer, skip_special_tokens=True)}
        words = [part for part in each.messages[-1]["content"] if part["type"] == "text"]
        messages = [
            *each.messages,
            {"role": "assistant", "content": [said]},
            {"role": "user", "content": words},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        made.append(replace(each, messages=messages, prompt={**each.prompt, "prompt": text}))
    return made


def prompts(target: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The prompts alone."""
    return [each.prompt for each in questions(target, count, seed)]


def _shapes(count: int, seed: int) -> list[tuple[list[dict[str, Any]], Image, str]]:
    from vllm_specvlm import zoo

    return [
        (
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.question}]}],
            prompt.picture,
            prompt.kind,
        )
        for prompt in zoo.prompts(count, seed=seed)
    ]


def _scenes(count: int, seed: int) -> list[tuple[list[dict[str, Any]], Image, str]]:
    """Tasks take turns."""
    from vllm_specvlm.zoo.scenes import test_questions
    from vllm_specvlm.zoo.scenes.turn import TASKS

    by_task = []
    for task in TASKS:
        turns = [(question, turn) for question in test_questions(task) for turn in range(len(question.turns))]
        random.Random(f"{seed}/{task}").shuffle(turns)
        by_task.append([(task, *each) for each in turns])
    longest = max(map(len, by_task))
    mixed = [group[at] for at in range(longest) for group in by_task if at < len(group)][:count]
    return [
        (question.messages(tuple(each.answer for each in question.turns[:turn])), question.picture, task)
        for task, question, turn in mixed
    ]
