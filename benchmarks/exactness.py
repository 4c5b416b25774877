"""How often do answers differ from plain decoding, and is every difference a near-tie?

Greedy answers of plain vLLM, of vLLM's ngram speculation and of ours to the same prompts of the reference target. In
float32 and one thread nothing may differ. In bfloat16 the target's own linear layers round differently for one row and
for several, so vLLM's own speculation differs from its plain decoding at ties; ours may do so no more often. With
`--twice` every prompt is submitted twice, so that plain decoding runs with several rows too: then nothing may differ.

For each difference the two tokens' log-probabilities under plain decoding are compared at the first differing position.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")

from machine import machine, versions
from speedup import Method, chat, load_all


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


def answers(llm: Any, prompts: Sequence[dict[str, Any]], max_tokens: int, *, twice: bool) -> list[tuple[int, ...]]:
    """Greedy answers, one prompt at a time (or each beside its own copy)."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    found = []
    for prompt in prompts:
        outputs = llm.generate([prompt] * (2 if twice else 1), params, use_tqdm=False)
        found.append(tuple(outputs[0].outputs[0].token_ids))
    return found


def gap(llm: Any, prompt: dict[str, Any], shared: Sequence[int], ours: int, theirs: int) -> float:
    """Difference of two tokens' log-probabilities under plain decoding after the shared text."""
    from vllm import SamplingParams

    ids = llm.get_tokenizer().encode(prompt["prompt"]) + list(shared)
    request = {"prompt_token_ids": ids, "multi_modal_data": prompt["multi_modal_data"]}
    output = llm.generate([request], SamplingParams(temperature=0.0, max_tokens=1, logprobs=20), use_tqdm=False)[0]
    found = output.outputs[0].logprobs[0]
    if ours not in found or theirs not in found:
        return float("inf")
    return abs(found[ours].logprob - found[theirs].logprob)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write the file; exit 1 when a difference is no near-tie."""
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

    arguments.target, arguments.draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    engines = load_all(methods(arguments.draft), arguments)
    prompts = [chat(engines["plain"], prompt) for prompt in zoo.prompts(arguments.prompts, seed=2)]
    plain = answers(engines["plain"], prompts, arguments.max_tokens, twice=arguments.twice)
    # One step of the logits' own type at their usual size (8 to 32), or float32 noise.
    bound = 0.26 if arguments.dtype == "bfloat16" else 1e-3
    rows, worst = [], 0.0
    for name, llm in engines.items():
        if name == "plain":
            continue
        differing = []
        found = answers(llm, prompts, arguments.max_tokens, twice=arguments.twice)
        for prompt, ours, theirs in zip(prompts, found, plain, strict=True):
            if ours == theirs:
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
            differing.append(round(gap(engines["plain"], prompt, theirs[:at], ours[at], theirs[at]), 4))
        worst = max([worst, *differing])
        rows.append({"method": name, "prompts": len(prompts), "different": len(differing), "gaps": sorted(differing)})
        print(f"{name:14} {len(differing):4} of {len(prompts)} differ; gaps {sorted(differing)[-5:]}", flush=True)
    if arguments.json:
        report = {
            "machine": machine(),
            "versions": versions(),
            "mode": {"dtype": arguments.dtype, "twice": arguments.twice, "compiled": False},
            "date": datetime.date.today().isoformat(),
            "command": ["benchmarks/exactness.py", *(argv or sys.argv[1:])],
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if worst > bound:
        sys.exit(f"A difference of {worst:.3f} is no near-tie (bound {bound}).")


if __name__ == "__main__":
    main()
