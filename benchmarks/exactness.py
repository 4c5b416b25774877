"""How often do answers differ from plain decoding, and is every difference a near-tie?

Greedy answers of plain vLLM, of vLLM's ngram speculation and of ours to the same prompts of the reference target. In
float32 and one thread nothing may differ. In bfloat16 the target's own linear layers round differently for one row and
for several, so vLLM's own speculation differs from its plain decoding at ties; ours may do so no more often. With
`--twice` every prompt is submitted twice, so that plain decoding runs with several rows too: then nothing may differ.

Answers can differ only in steps that check drafts, so those are counted too. For each difference the two tokens'
log-probabilities under plain decoding are compared at the first differing position.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")

import held_out
from engine import Engine, Method, Question, start
from machine import write_report
from speedup import settings


def methods(draft: str) -> list[Method]:
    """Plain first, then what is compared with it."""
    ngram = {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    ours = {"method": "specvlm", "num_speculative_tokens": 8}
    return [
        Method("plain", None),
        Method("vllm-ngram-7", ngram),
        Method("lookup-8", ours),
        Method("tree-8", {**ours, "model": draft}),
    ]


def answers(
    engine: Engine, prompts: Sequence[dict[str, Any]], max_tokens: int, *, twice: bool
) -> tuple[list[tuple[int, ...]], int]:
    """Greedy answers, one prompt at a time (or each beside its own copy), and how often the target checked drafts."""
    copies = 2 if twice else 1
    rounds = [engine.ask([Question(prompt, 0.0, max_tokens, seed=0)] * copies, copies) for prompt in prompts]
    found = [answered.answers[0] for answered in rounds]
    return [answer.token_ids for answer in found], sum(answer.checks for answer in found)


def gap(
    plain: Engine, prompt: dict[str, Any], encoded: Sequence[int], shared: Sequence[int], ours: int, theirs: int
) -> float:
    """Difference of two tokens' log-probabilities under plain decoding of `encoded`, the prompt, and shared text."""
    request = {"prompt_token_ids": [*encoded, *shared], "multi_modal_data": prompt["multi_modal_data"]}
    (answer,) = plain.ask([Question(request, 0.0, 1, seed=0, logprobs=20)], 1).answers
    found = answer.first_logprobs
    if ours not in found or theirs not in found:
        return float("inf")
    return abs(found[ours] - found[theirs])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write the file; exit 1 when a difference of ours is no near-tie."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--twice", action="store_true", help="submit every prompt twice")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    arguments.compiled, arguments.concurrency = False, [2]
    from vllm_specvlm import zoo

    prompts = held_out.prompts(arguments.target, arguments.prompts, seed=2)
    arguments.target, arguments.draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.target)
    engines = start(methods(arguments.draft), settings(arguments))
    plain, _ = answers(engines["plain"], prompts, arguments.max_tokens, twice=arguments.twice)
    # One step of the logits' own type at their usual size (8 to 32), or float32 noise.
    bound = 0.26 if arguments.dtype == "bfloat16" else 1e-3
    rows, worst = [], 0.0
    for name, engine in engines.items():
        if name == "plain":
            continue
        differing = []
        found, checks = answers(engine, prompts, arguments.max_tokens, twice=arguments.twice)
        for prompt, ours, theirs in zip(prompts, found, plain, strict=True):
            if ours == theirs:
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            encoded = tokenizer.encode(prompt["prompt"])
            differing.append(round(gap(engines["plain"], prompt, encoded, theirs[:at], ours[at], theirs[at]), 4))
        if name != "vllm-ngram-7":
            worst = max([worst, *differing])
        rows.append(
            {
                "method": name,
                "prompts": len(prompts),
                "checks": checks,
                "different": len(differing),
                "gaps": sorted(differing),
            }
        )
        print(
            f"{name:14} {len(differing):4} of {len(prompts)} differ in {checks} checks of drafts;"
            f" gaps {sorted(differing)[-5:]}",
            flush=True,
        )
    if arguments.json:
        write_report(
            arguments.json,
            "exactness",
            argv,
            {"dtype": arguments.dtype, "twice": arguments.twice, "compiled": False},
            rows,
        )
    if worst > bound:
        sys.exit(f"One of our differences of {worst:.3f} is no near-tie (bound {bound}).")


if __name__ == "__main__":
    main()
