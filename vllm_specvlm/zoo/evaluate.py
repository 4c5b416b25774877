"""Measure the built reference pair: ``python -m vllm_specvlm.zoo.evaluate [--count N] [--out FILE]``.

On held-out pictures and held-out wordings, with the right picture, another's picture, and none:

* ``facts``: share of the facts (strings every right answer contains) found in the greedy answer; ``exact``: share of
  answers that are the right one word for word;
* ``nll``: nats per right answer, teacher-forced, with the right and with another's picture;
* ``acceptance``: tokens per verification, the bonus token counted, were the draft to propose chains of four greedily.
  Computed off line from the target's own greedy answers; the engine must reproduce it.

Everything runs in bfloat16, the dtype the checkpoints are stored in.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vllm_specvlm.zoo import chat
from vllm_specvlm.zoo.language_model import IM_END
from vllm_specvlm.zoo.pair import ReferencePair, default_home, reference_pair
from vllm_specvlm.zoo.prompts import Prompt, prompts

CHAIN = 4
_BATCH = 24


class Speaker:
    """A LLaVA checkpoint that answers and scores in batches (transformers, bfloat16)."""

    def __init__(self, folder: Path) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def inputs(self, questions: Sequence[str], pictures: Sequence[Image.Image] | None) -> dict[str, torch.Tensor]:
        """Model inputs of one batch, padded on the left; ``pictures`` None asks without any."""
        parts = [] if pictures is None else [{"type": "image"}]
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}], add_generation_prompt=True
            )
            for question in questions
        ]
        images = None if pictures is None else list(pictures)
        made = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        if pictures is not None:
            made["pixel_values"] = made["pixel_values"].to(torch.bfloat16)
        return dict(made)

    @torch.no_grad()
    def answers(
        self, questions: Sequence[str], pictures: Sequence[Image.Image] | None, limit: int = 128
    ) -> list[list[int]]:
        """Greedy answers, as token ids with the end token."""
        said: list[list[int]] = []
        for start in range(0, len(questions), _BATCH):
            some = slice(start, start + _BATCH)
            inputs = self.inputs(questions[some], None if pictures is None else pictures[some])
            out = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                said.append(row[: row.index(IM_END) + 1] if IM_END in row else row)
        return said

    @torch.no_grad()
    def logits(self, question: str, picture: Image.Image | None, answer: Sequence[int]) -> torch.Tensor:
        """Float32 logits ``[len(answer), vocabulary]`` that predict ``answer``'s tokens, teacher-forced."""
        inputs = self.inputs([question], None if picture is None else [picture])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(answer)])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs.pop("token_type_ids", None)
        scores: torch.Tensor = self.model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1]
        return scores.float()

    def text(self, ids: Sequence[int]) -> str:
        """The words of an answer."""
        decoded: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded


def found(facts: Iterable[str], answer: str) -> float:
    """Share of ``facts`` that occur in ``answer`` as whole words, whatever the case."""
    hits = [re.search(rf"\b{re.escape(fact)}\b", answer, re.IGNORECASE) is not None for fact in facts]
    return sum(hits) / len(hits)


def verification_cycles(matches: Sequence[bool], chain: int = CHAIN) -> tuple[int, int]:
    """Tokens and verification cycles of one greedy answer.

    ``matches[i]`` says that the draft, given the true prefix, would have proposed token i. Token 0 comes from the
    prefill. A cycle accepts the next run of matches, at most ``chain``, and adds the target's own token. For greedy
    decoding this is exact: as long as proposals are accepted, the draft's prefix is the true one.
    """
    position, cycles = 1, 0
    while position < len(matches):
        accepted = 0
        while accepted < chain and position + accepted < len(matches) and matches[position + accepted]:
            accepted += 1
        position += accepted + 1
        cycles += 1
    return max(0, len(matches) - 1), cycles


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return round(sum(kept) / len(kept), 4) if kept else float("nan")


def _acceptance(draft: Speaker, asked: Sequence[tuple[str, Image.Image | None, list[int]]]) -> dict[str, float]:
    tokens = cycles = hits = count = 0
    for question, picture, answer in asked:
        best = draft.logits(question, picture, answer).argmax(-1)
        matches = (best == torch.tensor(answer)).tolist()
        hits, count = hits + sum(matches), count + len(matches)
        more_tokens, more_cycles = verification_cycles(matches)
        tokens, cycles = tokens + more_tokens, cycles + more_cycles
    return {"tokens_per_cycle": round(tokens / max(1, cycles), 3), "agreement": round(hits / max(1, count), 4)}


def _score(asked: Sequence[Prompt], said: Sequence[str]) -> dict[str, Any]:
    rows = list(zip(asked, said, strict=True))
    by_kind = {}
    for kind in sorted({prompt.kind for prompt in asked}):
        some = [(prompt, text) for prompt, text in rows if prompt.kind == kind]
        by_kind[kind] = {
            "count": len(some),
            "facts": _mean(found(prompt.facts, text) for prompt, text in some),
            "exact": _mean(float(text.strip() == prompt.answer) for prompt, text in some),
        }
    return {
        "facts": _mean(found(prompt.facts, text) for prompt, text in rows),
        "exact": _mean(float(text.strip() == prompt.answer) for prompt, text in rows),
        "kinds": by_kind,
    }


def evaluate(pair: ReferencePair, count: int, seed: int = 0) -> dict[str, Any]:
    """All figures of the module's docstring, over ``count`` held-out prompts."""
    target, draft = Speaker(pair.target), Speaker(pair.draft)
    # Sorted by length of the answer: a batch runs as long as its longest.
    asked = sorted(prompts(count, seed), key=lambda prompt: len(prompt.answer))
    questions, right = [prompt.question for prompt in asked], [prompt.picture for prompt in asked]
    half = len(right) // 2
    wrong = right[half:] + right[:half]

    def say(pictures: Sequence[Image.Image] | None) -> list[list[int]]:
        return target.answers(questions, pictures)

    spoken = {"right_picture": say(right), "wrong_picture": say(wrong), "no_picture": say(None)}
    print("answers done", file=sys.stderr, flush=True)
    report: dict[str, Any] = {"count": count, "seed": seed, "dtype": "bfloat16", "chain": CHAIN}
    report["target"] = {name: _score(asked, [target.text(ids) for ids in answers]) for name, answers in spoken.items()}

    nll: dict[str, list[float]] = {"right_picture": [], "wrong_picture": []}
    for prompt, other in zip(asked, wrong, strict=True):
        wanted = [*target.processor.tokenizer(prompt.answer).input_ids, IM_END]
        for name, picture in (("right_picture", prompt.picture), ("wrong_picture", other)):
            scores = target.logits(prompt.question, picture, wanted)
            nll[name].append(F.cross_entropy(scores, torch.tensor(wanted), reduction="sum").item())
    report["nll"] = {name: _mean(values) for name, values in nll.items()}
    report["nll"]["right_is_lower"] = _mean(
        float(r < w) for r, w in zip(nll["right_picture"], nll["wrong_picture"], strict=True)
    )

    answered = list(zip(asked, spoken["right_picture"], strict=True))
    acceptance = {"all": _acceptance(draft, [(p.question, p.picture, ids) for p, ids in answered])}
    for kind in sorted({prompt.kind for prompt in asked}):
        acceptance[kind] = _acceptance(draft, [(p.question, p.picture, ids) for p, ids in answered if p.kind == kind])
    acceptance["all_with_wrong_picture_for_draft"] = _acceptance(
        draft, [(p.question, other, ids) for (p, ids), other in zip(answered, wrong, strict=True)]
    )
    talk = chat.questions("test")[:24]
    plain = target.answers(talk, None, limit=chat.MAX_ANSWER)
    acceptance["plain_text"] = _acceptance(
        draft, [(question, None, ids) for question, ids in zip(talk, plain, strict=True)]
    )
    report["acceptance"] = acceptance
    report["examples"] = [
        {"question": prompt.question, "right": prompt.answer, "said": target.text(ids)}
        for prompt, ids in answered[:: max(1, count // 12)]
    ]
    report["plain_text_examples"] = [
        {"question": q, "said": target.text(ids)} for q, ids in list(zip(talk, plain, strict=True))[:3]
    ]
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=None, help="where the pair is built")
    parser.add_argument("--count", type=int, default=240, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON file (default: standard output)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = evaluate(reference_pair(args.home or default_home()), args.count, args.seed)
    text = json.dumps(report, indent=2) + "\n"
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
