"""Is it faster, and is it the same: plain vLLM, vLLM's ngram and our drafters, interleaved in one run.

Each engine has a process of its own and they take turns, so that a slow minute of the machine hits all of them.
`speedup` is the ratio of plain vLLM's TPOT to the method's (decoding only); `speedup_end_to_end` the ratio of times for
the whole batch, prompt included. Medians over the repetitions. With `--dtype bfloat16` or several threads, answers may
differ from plain decoding at near-ties; `identical_share` says how many did not.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from engine import Engine, Method, Question, Round, acceptance_length, median_tpot_ms, start
from machine import write_report


def methods(draft: str) -> list[Method]:
    """What is compared; the budget of nodes is in the name."""

    def ours(nodes: int, **more: Any) -> dict[str, Any]:
        return {"method": "specvlm", "num_speculative_tokens": nodes, "planner": False, **more}

    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return [
        Method("plain", None),
        Method("vllm-ngram-5", ngram),
        Method("lookup-8", ours(8)),
        Method("chain-4", ours(4, model=draft, tree="chain")),
        Method("tree-8", ours(8, model=draft)),
        Method("tree-16", ours(16, model=draft)),
        Method("tree-32", ours(32, model=draft)),
        Method("planner", {"method": "specvlm", "model": draft}),
    ]


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all engines have in common."""
    return {
        "model": arguments.target,
        "dtype": arguments.dtype,
        "enforce_eager": not arguments.compiled,
        "max_model_len": 1024,
        "max_num_seqs": max(arguments.concurrency),
        "kv_cache_memory_bytes": 512 << 20,
        "enable_prefix_caching": False,
    }


def measure(
    engines: dict[str, Engine], prompts: Sequence[dict[str, Any]], setting: dict[str, Any], repeats: int
) -> dict[str, list[Round]]:
    """The rounds of each method; `prompts` are answered `concurrency` at a time, the methods taking turns."""
    size = setting["concurrency"]
    batches = [prompts[i : i + size] for i in range(0, len(prompts) - size + 1, size)]
    rounds: dict[str, list[Round]] = {name: [] for name in engines}
    for _ in range(repeats):
        for batch in batches:
            questions = [
                Question(prompt, setting["temperature"], setting["max_tokens"], seed)
                for seed, prompt in enumerate(batch)
            ]
            for name, engine in engines.items():
                rounds[name].append(engine.ask(questions, size))
    return rounds


def rows(rounds: dict[str, list[Round]], setting: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per method, compared with plain batch by batch."""
    plain = rounds["plain"]
    greedy = setting["temperature"] == 0.0
    base = median_tpot_ms(plain)
    made = []
    for name, mine in rounds.items():
        pairs = list(zip(mine, plain, strict=True))
        answers = [(a, b) for ours, theirs in pairs for a, b in zip(ours.answers, theirs.answers, strict=True)]
        same = sum(a.token_ids == b.token_ids for a, b in answers) / len(answers)
        tpot = median_tpot_ms(mine)
        end_to_end = [(theirs.seconds / theirs.tokens) / (ours.seconds / ours.tokens) for ours, theirs in pairs]
        made.append(
            {
                "method": name,
                "concurrency": setting["concurrency"],
                "temperature": setting["temperature"],
                "tokens_per_s": round(sum(r.tokens for r in mine) / sum(r.seconds for r in mine), 2),
                "tpot_ms": round(tpot, 3),
                "ttft_ms": round(statistics.median(a.ttft_ms for a, _ in answers), 2),
                "speedup": round(base / tpot, 3),
                "speedup_end_to_end": round(statistics.median(end_to_end), 3),
                "acceptance_length": round(acceptance_length(mine), 3),
                "identical": same == 1.0 if greedy else None,
                "identical_share": round(same, 4) if greedy else None,
                "answers": len(answers),
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

    prompts = held_out.prompts(arguments.target, arguments.prompts, seed=1)
    arguments.target, arguments.draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    chosen = [m for m in methods(arguments.draft) if not arguments.methods or m.name in ("plain", *arguments.methods)]
    engines = start(chosen, settings(arguments))
    for temperature in (0.0, 1.0):  # warm up
        measure(engines, prompts[:2], {"concurrency": 2, "temperature": temperature, "max_tokens": 24}, 1)
    table: list[dict[str, Any]] = []
    for concurrency in arguments.concurrency:
        for temperature in arguments.temperature:
            setting = {"concurrency": concurrency, "temperature": temperature, "max_tokens": arguments.max_tokens}
            table += rows(measure(engines, prompts, setting, arguments.repeats), setting)
            show(table[-len(engines) :])
    tallies = {name: tally for name, engine in engines.items() if (tally := engine.tally()) is not None}
    for engine in engines.values():
        engine.close()
    if arguments.json:
        write_report(
            arguments.json,
            "speedup",
            argv,
            {"dtype": arguments.dtype, "compiled": arguments.compiled},
            table,
            tallies=tallies,
        )


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
