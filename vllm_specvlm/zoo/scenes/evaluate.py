"""Measure the built scenes target: ``python -m vllm_specvlm.zoo.scenes.evaluate [--setting NAME] [--out FILE]``.

On the committed test questions, with the right picture, another picture of the same task, and none: ``facts`` is the
share of the facts (strings every right answer contains) found in the greedy answer, ``right`` the share of answers with
all of them. In a dialogue the target's own earlier answers stand before the next question. ``tokens`` is the mean
length of the answers. Everything runs in bfloat16, in which the checkpoint is stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vllm_specvlm.zoo.language_model import IM_END
from vllm_specvlm.zoo.pair import default_home
from vllm_specvlm.zoo.scenes.build import scenes_target
from vllm_specvlm.zoo.scenes.settings import SETTINGS
from vllm_specvlm.zoo.scenes.test_set import TestQuestion, test_questions
from vllm_specvlm.zoo.scenes.turn import TASKS, Turn, found

CONDITIONS = ("right_picture", "wrong_picture", "no_picture")
LIMIT = 160  # tokens of an answer
_BATCH = 16

# a question under one condition: the conversation so far and the picture
Asked = tuple[list[dict[str, Any]], Image.Image | None]


class Speaker:
    """The checkpoint, answering in batches (transformers, bfloat16)."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.no_grad()
    def answers(self, asked: Sequence[Asked]) -> list[tuple[str, int]]:
        """Greedy answers and their numbers of tokens; all of ``asked`` have a picture, or none has."""
        said: list[tuple[str, int]] = []
        for start in range(0, len(asked), _BATCH):
            some = asked[start : start + _BATCH]
            texts = [self.processor.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in some]
            pictures = [picture for _, picture in some if picture is not None]
            inputs = dict(self.processor(images=pictures or None, text=texts, padding=True, return_tensors="pt"))
            if pictures:
                inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
            out = self.model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                ids = row[: row.index(IM_END) + 1] if IM_END in row else row
                said.append((self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip(), len(ids)))
        return said


def _pictures(questions: Sequence[TestQuestion], condition: str) -> list[Image.Image | None]:
    if condition == "no_picture":
        return [None] * len(questions)
    paths = sorted({question.path for question in questions})
    shift = 0 if condition == "right_picture" else 1
    return [
        Image.open(paths[(paths.index(question.path) + shift) % len(paths)]).convert("RGB") for question in questions
    ]


def _ask(speaker: Speaker, questions: Sequence[TestQuestion], condition: str) -> list[tuple[Turn, str, int]]:
    """Every turn of ``questions`` (of one task) with the answer given and its length."""
    pictures = _pictures(questions, condition)
    given: list[tuple[str, ...]] = [()] * len(questions)
    told = []
    for turn in range(max(len(question.turns) for question in questions)):
        going = [index for index, question in enumerate(questions) if len(question.turns) > turn]
        # Sorted by length of the right answer: a batch runs as long as its longest.
        going.sort(key=lambda index: len(questions[index].turns[turn].answer))
        asked = [(questions[i].messages(given[i], image=condition != "no_picture"), pictures[i]) for i in going]
        for index, (text, tokens) in zip(going, speaker.answers(asked), strict=True):
            told.append((questions[index].turns[turn], text, tokens))
            given[index] = (*given[index], text)
    return told


def evaluate(folder: Path, per_task: int | None = None, tasks: Sequence[str] = TASKS) -> dict[str, Any]:
    """All figures of the module's docstring, over at most ``per_task`` questions of each of ``tasks``."""
    speaker = Speaker(folder)
    report: dict[str, Any] = {"dtype": "bfloat16", "tasks": {}, "examples": []}
    for task in tasks:
        questions = test_questions(task)
        if per_task is not None:
            step = max(1, len(questions) // per_task)
            questions = questions[::step][:per_task]
        row: dict[str, Any] = {}
        for condition in CONDITIONS:
            told = _ask(speaker, questions, condition)
            scores = [found(turn.facts, text) for turn, text, _ in told]
            row[condition] = {
                "facts": round(sum(scores) / len(scores), 4),
                "right": round(sum(score == 1.0 for score in scores) / len(scores), 4),
                "tokens": round(sum(tokens for _, _, tokens in told) / len(told), 1),
            }
            row["answers"] = len(told)
            if condition == "right_picture":
                report["examples"] += [
                    {"task": task, "question": turn.question, "right": turn.answer, "said": text}
                    for turn, text, _ in told[:: max(1, len(told) // 4)]
                ]
            print(task, condition, row[condition], file=sys.stderr, flush=True)
        report["tasks"][task] = row
    return report


def renewed(before: dict[str, Any], some: dict[str, Any]) -> dict[str, Any]:
    """A report of all tasks with those that another one has in the place of its own.

    Raises:
        ValueError: they are of different settings.
    """
    if before["setting"] != some["setting"]:
        raise ValueError(f"The file is of {before['setting']}, not {some['setting']}; name another --out.")
    examples = {task: [each for each in before["examples"] if each["task"] == task] for task in before["tasks"]}
    examples |= {task: [each for each in some["examples"] if each["task"] == task] for task in some["tasks"]}
    return before | {
        "tasks": before["tasks"] | some["tasks"],
        "examples": [e for each in examples.values() for e in each],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=None, help="where the checkpoint is built")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="scenes-target")
    parser.add_argument("--per-task", type=int, default=None, help="questions of each task (default: all)")
    parser.add_argument("--task", choices=TASKS, default=None, help="this one alone; of the others --out is kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: standard output)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = scenes_target(args.setting, args.home or default_home())
    report = {"setting": args.setting} | evaluate(folder, args.per_task, (args.task,) if args.task else TASKS)
    if args.task and args.out is not None and args.out.exists():
        report = renewed(json.loads(args.out.read_text()), report)
    text = json.dumps(report, indent=2) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
