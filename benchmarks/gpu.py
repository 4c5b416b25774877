"""Speculation on an NVIDIA GPU: one command, one report.

    python benchmarks/gpu.py --json gpu.json

For each pair of models: plain vLLM as it is, plain vLLM on the runner and the schedule that speculation with trees
needs (`plain-v1`: what those cost by themselves), vLLM's ngram and EAGLE-3, and ours. Engines run one after the other,
each in a process of its own. `speedup` is the ratio of plain vLLM's time per token to the method's; see speedup.py for
the other columns. Where a model cannot be loaded, its row says why.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "0")  # models that are not here yet are downloaded

from engine import Engine, Method, Round
from machine import write_report
from speedup import measure, rows, show

WARM_UP = {"temperature": 0.0, "max_tokens": 16}


@dataclass(frozen=True)
class Pair:
    """A target, a draft VLM for it, and a public EAGLE-3 head if there is one."""

    target: str
    draft: str
    eagle3: str | None = None


PAIRS = {
    "qwen2.5-vl-7b": Pair(
        "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Rayzl/qwen2.5-vl-7b-eagle3-sgl"
    ),
    "llava-1.5-7b": Pair("llava-hf/llava-1.5-7b-hf", "bczhou/tiny-llava-v1-hf"),
}


@dataclass(frozen=True)
class Run:
    """A row: its name, vLLM's speculative configuration, and what else its engine gets."""

    name: str
    speculative: dict[str, Any] | None
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def runs(pair: Pair) -> list[Run]:
    """What is compared for a pair."""
    ours = {"method": "specvlm"}
    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    found = [
        Run("plain", None),
        Run("plain-v1", None, {"async_scheduling": False}, {"VLLM_USE_V2_MODEL_RUNNER": "0"}),
        Run("vllm-ngram-5", ngram),
        Run("lookup", ours),
        Run("tree-16", {**ours, "model": pair.draft, "planner": False, "num_speculative_tokens": 16}),
        Run("planner", {**ours, "model": pair.draft}),
    ]
    if pair.eagle3 is not None:
        eagle3 = {"method": "eagle3", "model": pair.eagle3, "num_speculative_tokens": 4}
        found.insert(3, Run("vllm-eagle3-4", eagle3))
    return found


def questions(target: str, count: int) -> list[dict[str, Any]]:
    """Pictures with questions, as `LLM.generate` takes them."""
    from transformers import AutoProcessor

    from vllm_specvlm import zoo

    processor = AutoProcessor.from_pretrained(target)
    made = []
    for prompt in zoo.prompts(count, seed=1):
        content = [{"type": "image"}, {"type": "text", "text": prompt.question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        made.append({"prompt": text, "multi_modal_data": {"image": prompt.picture}})
    return made


def settings(pair: Pair, arguments: argparse.Namespace, *, gpu: bool) -> dict[str, Any]:
    """What all engines of a pair have in common."""
    common = {
        "model": pair.target,
        "dtype": arguments.dtype or ("bfloat16" if gpu else "float32"),
        "enforce_eager": arguments.eager or not gpu,
        "max_model_len": 2048,
        "max_num_seqs": max(arguments.concurrency),
        "limit_mm_per_prompt": {"image": 1},
        "enable_prefix_caching": False,
    }
    return {**common, "gpu_memory_utilization": 0.85} if gpu else {**common, "kv_cache_memory_bytes": 512 << 20}


def answered(
    run: Run, common: dict[str, Any], prompts: Sequence[dict[str, Any]], arguments: argparse.Namespace
) -> list[list[Round]]:
    """The rounds of one engine, by concurrency. Raises EOFError if the engine died."""
    before = {name: os.environ.get(name) for name in run.environment}
    os.environ.update(run.environment)
    try:
        engine = Engine(Method(run.name, run.speculative), {**common, **run.settings})
        engine.ready()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    measure({run.name: engine}, prompts[:2], {**WARM_UP, "concurrency": 2}, 1)
    found = []
    for concurrency in arguments.concurrency:
        setting = {"concurrency": concurrency, "temperature": 0.0, "max_tokens": arguments.max_tokens}
        found.append(measure({run.name: engine}, prompts, setting, arguments.repeats)[run.name])
    engine.close()
    return found


def compare(name: str, pair: Pair, arguments: argparse.Namespace, *, gpu: bool) -> list[dict[str, Any]]:
    """The rows of a pair."""
    prompts = questions(pair.target, arguments.prompts)
    chosen = [r for r in runs(pair) if not arguments.methods or r.name in ("plain", *arguments.methods)]
    by_run: dict[str, list[list[Round]]] = {}
    table: list[dict[str, Any]] = []
    for run in chosen:
        print(f"{name}: {run.name}", flush=True)
        try:
            by_run[run.name] = answered(run, settings(pair, arguments, gpu=gpu), prompts, arguments)
        except EOFError:
            table.append({"pair": name, "method": run.name, "error": "the engine died; its own words are above"})
            if run.name == "plain":
                return table
    for i, concurrency in enumerate(arguments.concurrency):
        setting = {"concurrency": concurrency, "temperature": 0.0, "max_tokens": arguments.max_tokens}
        made = rows({method: found[i] for method, found in by_run.items()}, setting)
        show(made)
        table += [{"pair": name, **row} for row in made]
    return table


def runner_cost(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Time per token that the V1 runner without asynchronous scheduling adds to plain vLLM, ms, by pair and size."""
    found = {(r["pair"], r["concurrency"], r["method"]): r["tpot_ms"] for r in table if "tpot_ms" in r}
    return {
        f"{pair}, {concurrency} at once": round(tpot - found[pair, concurrency, "plain"], 3)
        for (pair, concurrency, method), tpot in found.items()
        if method == "plain-v1"
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(PAIRS), nargs="+", default=list(PAIRS))
    parser.add_argument("--target", help="another pair instead: its target ...")
    parser.add_argument("--draft", help="... and its draft VLM")
    parser.add_argument("--eagle3", help="an EAGLE-3 head for it, as vLLM loads it")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompts", type=int, default=64, help="different prompts per setting")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--methods", nargs="+", help="only these, beside plain")
    parser.add_argument("--quick", action="store_true", help="four prompts, 16 tokens, one or two at once")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("specvlm-gpu.json"))
    arguments = parser.parse_args(argv)
    if (arguments.target is None) != (arguments.draft is None):
        parser.error("--target and --draft belong together")
    if arguments.quick:
        arguments.concurrency, arguments.prompts, arguments.repeats, arguments.max_tokens = [1, 2], 4, 1, 16
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every pair, print the tables, write the report."""
    arguments = parse(argv)
    from vllm_specvlm import zoo
    from vllm_specvlm.selftest import machine

    pairs = {name: PAIRS[name] for name in arguments.pair}
    if arguments.target is not None:
        pairs = {"given": Pair(zoo.resolve(arguments.target), zoo.resolve(arguments.draft), arguments.eagle3)}
    gpu = machine.gpu() is not None
    if not gpu:
        print("There is no GPU here: this is the CPU backend, and its figures say nothing about one.", flush=True)
    table = [row for name, pair in pairs.items() for row in compare(name, pair, arguments, gpu=gpu)]
    cost = runner_cost(table)
    for where, milliseconds in cost.items():
        print(f"{where}: the V1 runner without asynchronous scheduling adds {milliseconds} ms a token.")
    if cost:
        print(f"median: {statistics.median(cost.values()):.3f} ms")
    mode = {"dtype": arguments.dtype, "compiled": not arguments.eager and gpu}
    write_report(arguments.json, "gpu", argv, mode, table, runner_cost_ms=cost, device=machine.describe())


if __name__ == "__main__":
    main()
