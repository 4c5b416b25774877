"""Questions never trained on, as `LLM.generate` takes them, with the kind of task of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A prompt and its kind."""

    prompt: dict[str, Any]
    kind: str


def questions(target: str, count: int, seed: int) -> list[Asked]:
    """`count` held-out questions about pictures, kinds mixed.

    Args:
        target: name or folder; its chat template is used. `specvlm/scenes-*` is asked the six tasks of its committed
            test set, in dialogues after right answers to the questions before; any other what `zoo.prompts` asks.
        count: at most so many; the scenes' test set ends.
        seed: of `zoo.prompts`, and of the order of the scenes.
    """
    from vllm_specvlm import zoo

    folder = zoo.resolve(target)
    return _scenes(folder, count, seed) if target.startswith("specvlm/scenes-") else _shapes(folder, count, seed)


def prompts(target: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The prompts alone."""
    return [each.prompt for each in questions(target, count, seed)]


def _shapes(folder: str, count: int, seed: int) -> list[Asked]:
    from vllm_specvlm import zoo

    made = zoo.prompts(count, seed=seed)
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt.question}]}] for prompt in made
    ]
    return [
        Asked({"prompt": text, "multi_modal_data": {"image": prompt.picture}}, prompt.kind)
        for text, prompt in zip(_texts(folder, messages), made, strict=True)
    ]


def _scenes(folder: str, count: int, seed: int) -> list[Asked]:
    """Tasks take turns."""
    import random

    from vllm_specvlm.zoo.scenes import test_questions
    from vllm_specvlm.zoo.scenes.turn import TASKS

    by_task = []
    for task in TASKS:
        turns = [(question, turn) for question in test_questions(task) for turn in range(len(question.turns))]
        random.Random(f"{seed}/{task}").shuffle(turns)
        by_task.append([(task, *each) for each in turns])
    longest = max(map(len, by_task))
    mixed = [group[at] for at in range(longest) for group in by_task if at < len(group)][:count]
    messages = [question.messages(tuple(each.answer for each in question.turns[:turn])) for _, question, turn in mixed]
    return [
        Asked({"prompt": text, "multi_modal_data": {"image": question.picture}}, task)
        for text, (task, question, _) in zip(_texts(folder, messages), mixed, strict=True)
    ]


def _texts(folder: str, conversations: Sequence[Any]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
