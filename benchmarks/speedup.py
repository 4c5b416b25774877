"""Is it faster, and is it the same: plain vLLM, vLLM's ngram and our drafters, interleaved in one run.

All engines live in one process and take turns, so that a slow minute of the machine hits all of them. `speedup` is the
ratio of plain vLLM's TPOT to the method's (decoding only); `speedup_end_to_end` the ratio of times for the whole batch,
prompt included. Medians over the repetitions. With `--dtype bfloat16` or several threads, answers may differ from plain
decoding at near-ties; `identical_share` says how many did not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Read once, at vLLM's import: the engines run inside this process, on all of its cores.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from machine import machine, versions


@dataclass(frozen=True)
class Method:
    """A row of the table: its name and the speculative configuration."""

    name: str
    speculative: dict[str, Any] | None


@dataclass
class Run:
    """One batch of one method, and what it showed."""

    tokens: int
    seconds: float
    tpot_ms: list[float]
    ttft_ms: list[float]
    drafts: int
    accepted: int
    texts: list[tuple[int, ...]] = field(default_factory=list)


def methods(draft: str) -> list[Method]:
    """What is compared; the budget of nodes is in the name."""

    def ours(nodes: int, **more: Any) -> dict[str, Any]:
        return {"method": "specvlm", "num_speculative_tokens": nodes, **more}

    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return [
        Method("plain", None),
        Method("vllm-ngram-5", ngram),
        Method("lookup-8", ours(8)),
        Method("chain-4", ours(4, model=draft, tree="chain")),
        Method("tree-8", ours(8, model=draft)),
        Method("tree-16", ours(16, model=draft)),
        Method("tree-32", ours(32, model=draft)),
    ]


def load(method: Method, arguments: argparse.Namespace) -> Any:
    """An engine for the method; all engines have the same settings otherwise."""
    from vllm import LLM

    return LLM(
        model=arguments.target,
        dtype=arguments.dtype,
        enforce_eager=not arguments.compiled,
        max_model_len=1024,
        max_num_seqs=max(arguments.concurrency),
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
        seed=0,
        disable_log_stats=False,
        per_request_spec_decode_metrics="none" if method.speculative is None else "summary",
        speculative_config=method.speculative,
    )


def load_all(chosen: Sequence[Method], arguments: argparse.Namespace) -> dict[str, Any]:
    """Engines by name, in the order of `chosen`.

    vLLM's ngram is loaded last: it imports numba, after which vLLM 0.32 cannot make another engine in the process.
    """
    engines: dict[str, Any] = {}
    for method in sorted(chosen, key=lambda m: (m.speculative or {}).get("method") == "ngram"):
        print(f"loading {method.name}", file=sys.stderr)
        engines[method.name] = load(method, arguments)
    return {method.name: engines[method.name] for method in chosen}


def run(llm: Any, prompts: Sequence[dict[str, Any]], temperature: float, max_tokens: int) -> Run:
    """Answer all prompts at once and time it."""
    from vllm import SamplingParams

    params = [SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=i) for i in range(len(prompts))]
    started = time.perf_counter()
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    seconds = time.perf_counter() - started
    result = Run(0, seconds, [], [], 0, 0)
    for output in outputs:
        answer, stats = output.outputs[0], output.metrics
        result.texts.append(tuple(answer.token_ids))
        result.tokens += len(answer.token_ids)
        if len(answer.token_ids) > 1:
            result.tpot_ms.append(1e3 * (stats.last_token_ts - stats.first_token_ts) / (len(answer.token_ids) - 1))
        result.ttft_ms.append(1e3 * stats.first_token_latency)
        if answer.spec_decode_metrics is not None:
            histogram = answer.spec_decode_metrics.histogram
            result.drafts += sum(histogram)
            result.accepted += sum(length * count for length, count in enumerate(histogram))
    return result


def measure(engines: dict[str, Any], prompts: Sequence[dict[str, Any]], setting: dict[str, Any], repeats: int) -> Any:
    """Median figures per method; `prompts` are answered `concurrency` at a time, the methods taking turns."""
    size = setting["concurrency"]
    batches = [prompts[i : i + size] for i in range(0, len(prompts) - size + 1, size)]
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for _ in range(repeats):
        for batch in batches:
            for name, llm in engines.items():
                runs[name].append(run(llm, batch, setting["temperature"], setting["max_tokens"]))
    return runs


def rows(runs: dict[str, list[Run]], setting: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per method, compared with plain batch by batch."""
    plain = runs["plain"]
    made = []
    for name, mine in runs.items():
        tpot = statistics.median(t for r in mine for t in r.tpot_ms)
        base = statistics.median(t for r in plain for t in r.tpot_ms)
        texts = [(a, b) for r, p in zip(mine, plain, strict=True) for a, b in zip(r.texts, p.texts, strict=True)]
        same = sum(a == b for a, b in texts) / len(texts)
        drafts = sum(r.drafts for r in mine)
        greedy = setting["temperature"] == 0.0
        made.append(
            {
                "method": name,
                "concurrency": setting["concurrency"],
                "temperature": setting["temperature"],
                "tokens_per_s": round(sum(r.tokens for r in mine) / sum(r.seconds for r in mine), 2),
                "tpot_ms": round(tpot, 3),
                "ttft_ms": round(statistics.median(t for r in mine for t in r.ttft_ms), 2),
                "speedup": round(base / tpot, 3),
                "speedup_end_to_end": round(
                    statistics.median(
                        (p.seconds / p.tokens) / (r.seconds / r.tokens) for r, p in zip(mine, plain, strict=True)
                    ),
                    3,
                ),
                "acceptance_length": round(1 + sum(r.accepted for r in mine) / drafts, 3) if drafts else 1.0,
                "identical": same == 1.0 if greedy else None,
                "identical_share": round(same, 4) if greedy else None,
                "answers": len(texts),
                "tokens": sum(r.tokens for r in mine),
            }
        )
    return made


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compiled", action="store_true", help="compile the models (default: eager)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--prompts", type=int, default=32, help="different prompts per setting")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--methods", nargs="+", help="only these, beside plain")
    parser.add_argument(
        "--quick", action="store_true", help="16 prompts, 64 tokens, once: under ten minutes on two cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.prompts, arguments.repeats, arguments.max_tokens = 16, 1, 64
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    arguments = parse(argv)
    from vllm_specvlm import zoo

    arguments.target, arguments.draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    chosen = [m for m in methods(arguments.draft) if not arguments.methods or m.name in ("plain", *arguments.methods)]
    engines = load_all(chosen, arguments)
    prompts = [chat(engines["plain"], prompt) for prompt in zoo.prompts(arguments.prompts, seed=1)]
    warm = {"concurrency": 2, "temperature": 0.0, "max_tokens": 24}
    measure(engines, prompts[:2], warm, 1)
    measure(engines, prompts[:2], {**warm, "temperature": 1.0}, 1)
    table: list[dict[str, Any]] = []
    for concurrency in arguments.concurrency:
        for temperature in arguments.temperature:
            setting = {"concurrency": concurrency, "temperature": temperature, "max_tokens": arguments.max_tokens}
            table += rows(measure(engines, prompts, setting, arguments.repeats), setting)
            show(table[-len(engines) :])
    ours = {m.name for m in chosen if (m.speculative or {}).get("method") == "specvlm"}
    tallies = {name: engines[name].collective_rpc("specvlm_tally")[0] for name in engines if name in ours}
    if arguments.json:
        report = {
            "machine": machine(),
            "versions": versions(),
            "mode": {"dtype": arguments.dtype, "compiled": arguments.compiled, "in_process": True},
            "date": datetime.date.today().isoformat(),
            "command": ["benchmarks/speedup.py", *(argv or sys.argv[1:])],
            "rows": table,
            "tallies": tallies,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def chat(llm: Any, prompt: Any) -> dict[str, Any]:
    """A prompt as `LLM.generate` takes it, through the model's own chat template."""
    content = [{"type": "image"}, {"type": "text", "text": prompt.question}]
    text = llm.get_tokenizer().apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return {"prompt": text, "multi_modal_data": {"image": prompt.picture}}


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print rows as text."""
    head = table[0]
    print(f"\nconcurrency {head['concurrency']}, temperature {head['temperature']}: {head['answers']} answers")
    print(
        f"{'method':14}{'tokens/s':>10}{'TPOT ms':>9}{'speedup':>9}{'end to end':>12}{'accepted':>10}{'identical':>11}"
    )
    for row in table:
        same = "-" if row["identical_share"] is None else f"{row['identical_share']:.1%}"
        print(
            f"{row['method']:14}{row['tokens_per_s']:10.1f}{row['tpot_ms']:9.2f}{row['speedup']:9.2f}"
            f"{row['speedup_end_to_end']:12.2f}{row['acceptance_length']:10.2f}{same:>11}"
        )


if __name__ == "__main__":
    main()
