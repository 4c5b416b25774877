"""What choosing per question could gain: the branches of a head that selects, each forced, question by question.

Every branch drafts for the same answers, the target's own greedy ones. Of each answer the slots of even and of odd
number are told apart: an oracle that picks the branch with the least loss on one half is scored on the other, since
the best of several by chance is not worth what it seems. `agreement` is the share of first drafts that are right with
the true text in front of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import write_report


def lessons(target: Any, count: int) -> list[Any]:
    """The first questions about pictures of the committed test set, tasks taking turns, answered by the target."""
    from vllm_specvlm.train.conversation import Conversation, Turn
    from vllm_specvlm.zoo.scenes import test_questions
    from vllm_specvlm.zoo.scenes.turn import TASKS

    by_task = [test_questions(task) for task in TASKS]
    asked = [group[at * len(group) // (count // len(TASKS))] for at in range(count // len(TASKS)) for group in by_task]
    encoded = [
        target.encoder.encode(Conversation((each.picture,), (Turn((None, each.turns[0].question), None),)))
        for each in asked
    ]
    encoded.sort(key=lambda each: len(each.ids))
    size, found = 12, []
    for start in range(0, len(encoded), size):
        some = encoded[start : start + size]
        found += target.answer(some, 96, [0.0] * len(some), 0)
    return [lesson for lesson in found if lesson.tokens > 1]


@torch.no_grad()
def judged(head: Any, target: Any, lesson: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every slot that is drafted from: the first draft's cross-entropy with the target's law, and if it is right."""
    from vllm_specvlm.train.losses import ce, law
    from vllm_specvlm.train.unroll import unroll
    from vllm_specvlm.train.views import view

    seen = view(head, target, [lesson])
    slots = seen.slots
    (output,) = unroll(head, slots, seen.embeddings, seen.visual, 1)
    logits = head.logits(output[0])
    rows = target.output_rows(head.vocabulary)
    wanted = law(slots.final[0], rows, slots.normaliser[0], slots.best[0], head.vocabulary)
    return ce(logits.log_softmax(-1), wanted), (logits.argmax(-1) == wanted.best).float()


def halves(values: torch.Tensor) -> torch.Tensor:
    """[branches, 2]: sums over even and over odd slots of [branches, slots]."""
    return torch.stack([values[:, 0::2].sum(1), values[:, 1::2].sum(1)], 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/scenes-target")
    parser.add_argument("--head", type=Path, required=True, help="a trained head whose compressor selects")
    parser.add_argument("--questions", type=int, default=72)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    from vllm_specvlm import zoo
    from vllm_specvlm.draft import head_checkpoint
    from vllm_specvlm.train.target import Target

    target = Target(str(zoo.resolve(arguments.target)), torch.float32, torch.device("cpu"))
    head, _ = head_checkpoint.load(arguments.head)
    head.float().eval()
    gate: Any = head.compressor
    shown = lessons(target, arguments.questions)
    losses, rights, chosen = [], [], []
    for lesson in shown:
        head.compressor = gate
        (start, _), *_ = lesson.pictures
        chosen.append(gate(lesson.visual[0].float(), target.embed(lesson.ids[:start]).mean(0)).choice)
        found = []
        for branch in gate.branches:
            head.compressor = branch
            found.append(judged(head, target, lesson))
        losses.append(halves(torch.stack([loss for loss, _ in found])))
        rights.append(halves(torch.stack([right for _, right in found])))
    loss, right = torch.stack(losses), torch.stack(rights)  # [questions, branches, halves]
    tokens = sum(lesson.tokens for lesson in shown)
    table: list[dict[str, Any]] = []
    for at, branch in enumerate(gate.config.branches):
        values = {"loss": loss[:, at].sum().item() / tokens, "agreement": right[:, at].sum().item() / tokens}
        table.append({"choice": branch.kind, **values, "chosen": chosen.count(at)})
    picks = loss.argmin(1).flip(1)  # the best branch of the other half
    picked = [values.gather(1, picks[:, None]).sum().item() / tokens for values in (loss, right)]
    table.append({"choice": "oracle", "loss": picked[0], "agreement": picked[1], "chosen": None})
    seen = [
        values.gather(1, values_of.argmin(1)[:, None]).sum().item() / tokens
        for values, values_of in ((loss, loss), (right, -right))
    ]
    table.append({"choice": "oracle that sees the same half", "loss": seen[0], "agreement": seen[1], "chosen": None})
    for row in table:
        print(f"{row['choice']:32}loss {row['loss']:.4f}   agreement {row['agreement']:.4f}   chosen {row['chosen']}")
    if arguments.json:
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table]
        mode = {"dtype": "float32", "compiled": False, "questions": len(shown), "tokens": tokens}
        write_report(arguments.json, "gate_oracle", argv, mode, rounded)


if __name__ == "__main__":
    main()
