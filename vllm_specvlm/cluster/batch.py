"""A file of questions answered into a file of answers, which a second run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray.data
from ray.exceptions import RayError

from vllm_specvlm.cluster.answers_file import AnswersFile
from vllm_specvlm.cluster.processor import Processor
from vllm_specvlm.cluster.question import Question
from vllm_specvlm.engine.chat_engine import chat_error

_DIED = "Every engine that was asked this question died; the log of the engines says of what."
_PROBED = 5  # questions that are asked one by one before the others are, if nothing was answered yet


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did."""

    skipped: int
    """Questions that the file had answers for already."""
    answered: int
    """Questions answered by this run, with and without errors."""
    failed: int
    """Questions in the file whose answer is an error, those of earlier runs included."""


def questions(path: Path, pictures: Path) -> list[Question]:
    """The questions of a file, one a line; empty lines are none.

    Raises:
        ValueError: a line is no question, or two have the same name; in one sentence.
        OSError: the file cannot be read.
    """
    found: dict[str, Question] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                question = Question.parse(line, pictures)
            except ValueError as error:
                raise ValueError(f"Line {number} of '{path}' {error}.") from error
            if question.custom_id in found:
                raise ValueError(f"Line {number} of '{path}' has a 'custom_id' of an earlier line; change it.")
            found[question.custom_id] = question
    return list(found.values())


def run(
    asked: Sequence[Question], output: Path, processor: Processor, told: Callable[[int], None] = lambda _: None
) -> Outcome:
    """Answer what `output` has no answers for.

    Questions whose batch was lost with its engines are asked again one by one, so that one that kills engines is found
    out, and written down as failed, and its neighbours are answered.

    Args:
        asked: the questions.
        output: file of the answers, made or continued.
        processor: the engines.
        told: called after each batch with the number of questions that have answers.

    Raises:
        ValueError: `output` is something else.
        RuntimeError: no engine starts, or none survives anything.
        OSError: `output` cannot be written.
    """
    with AnswersFile(output) as answers:

        def left() -> list[Question]:
            return [question for question in asked if question.custom_id not in answers.done]

        def ask(some: Sequence[Question], engines: Processor) -> bool:
            """Whether any was answered."""
            before = len(answers.done)
            for rows in _answered(some, engines):
                answers.write(rows)
                told(len(answers.done) - others)
            return len(answers.done) > before

        skipped = len(asked) - len(left())
        others = len(answers.done) - skipped
        alone = replace(processor, batch_size=1, batches_at_once=1)
        if not ask(left(), processor) and left() and not ask(left()[:_PROBED], alone):
            raise RuntimeError("No engine survived its first questions; the log of the engines says of what they died.")
        if left() and not ask(left(), alone) and len(left()) > _PROBED:
            raise RuntimeError("The engines have stopped to survive any question; what was answered before is kept.")
        lost = chat_error(_DIED, 500)
        answers.write({"custom_id": question.custom_id, "response": None, "error": lost} for question in left())
        return Outcome(skipped, len(asked) - skipped, answers.failed)


def _answered(asked: Sequence[Question], processor: Processor) -> Iterator[list[dict[str, str | None]]]:
    rows = [{"custom_id": question.custom_id, "body": question.body} for question in asked]
    if not rows:
        return
    dataset = ray.data.from_items(rows)
    # A batch that is lost is asked again by `run`; the default would end everything.
    dataset.context.max_errored_blocks = -1
    dataset.context.enable_progress_bars = False
    try:
        for table in processor(dataset).iter_batches(batch_size=None, batch_format="pyarrow"):
            yield table.to_pylist()
    except RayError as error:  # its text is a traceback, whose last line says what was wrong
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
