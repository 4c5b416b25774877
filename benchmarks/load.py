"""Does speculation ever lose? Plain vLLM, fixed settings and the planner under load, interleaved in one run.

Every policy has an engine of its own; they take turns, round by round, at the same questions. `closed` traffic keeps so
many clients busy with questions about pictures; `mixed` traffic comes in bursts: pictures and text, short and long
answers, greedy and sampled, two dozen each half second, which is twice what plain decoding can answer on two cores
(where bursts leave pauses, all policies that keep up give what was asked of them). `ratio_to_plain` is the median over
the rounds of the ratio of tokens per second; the planner's engine also says what it planned.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from engine import Engine, Method, Question, Round, acceptance_length, start
from machine import write_report


def policies(draft: str) -> list[Method]:
    """What is compared."""

    def fixed(nodes: int, **more: Any) -> dict[str, Any]:
        shape = {"planner": False} if "tree" not in more else {}
        return {"method": "specvlm", "model": draft, "num_speculative_tokens": nodes, **shape, **more}

    return [
        Method("plain", None),
        Method("chain-5", fixed(5, tree="chain")),
        Method("tree-8", fixed(8)),
        Method("tree-32", fixed(32)),
        Method("eagle2-60", fixed(60, depth=7, width=10, top_k=10)),
        Method("planner", {"method": "specvlm", "model": draft}),
    ]


def closed(prompts: Sequence[dict[str, Any]], temperature: float, max_tokens: int) -> list[Question]:
    """Questions about pictures, all there from the start."""
    return [Question(prompt, temperature, max_tokens, seed) for seed, prompt in enumerate(prompts)]


def mixed(prompts: Sequence[dict[str, Any]], burst: int, every_s: float, seed: int) -> list[Question]:
    """Bursts of questions of all kinds; every third is text only."""
    chance = random.Random(seed)
    questions = []
    for index, prompt in enumerate(prompts):
        text_only = {"prompt": "Tell me something about the colours of the rainbow.\n"}
        questions.append(
            Question(
                text_only if index % 3 == 2 else prompt,
                chance.choice((0.0, 1.0)),
                chance.choice((6, 24, 96)),
                index,
                arrival_s=index // burst * every_s,
            )
        )
    return questions


def measure(
    engines: dict[str, Engine], rounds: Sequence[Sequence[Question]], concurrency: int
) -> dict[str, list[Round]]:
    """Each policy's rounds; who goes first changes, so that none always meets a cold cache."""
    done: dict[str, list[Round]] = {name: [] for name in engines}
    for number, questions in enumerate(rounds):
        names = list(engines)
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            done[name].append(engines[name].ask(questions, concurrency))
    return done


def rows(done: dict[str, list[Round]], setting: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per policy, compared with plain round by round."""
    made = []
    for name, mine in done.items():
        ratios = [
            (ours.tokens / ours.seconds) / (theirs.tokens / theirs.seconds)
            for ours, theirs in zip(mine, done["plain"], strict=True)
        ]
        answers = [
            (a, b)
            for ours, theirs in zip(mine, done["plain"], strict=True)
            for a, b in zip(ours.answers, theirs.answers, strict=True)
        ]
        greedy = setting["temperature"] == 0.0
        made.append(
            {
                "policy": name,
                **setting,
                "tokens_per_s": round(sum(r.tokens for r in mine) / sum(r.seconds for r in mine), 2),
                "ratio_to_plain": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
                "ttft_ms": round(statistics.median(a.ttft_ms for a, _ in answers), 2),
                "acceptance_length": round(acceptance_length(mine), 3),
                "identical": all(a.token_ids == b.token_ids for a, b in answers) if greedy else None,
                "answers": len(answers),
            }
        )
    return made


def show(table: Sequence[dict[str, Any]]) -> None:
    """Print rows as text."""
    head = table[0]
    print(f"\n{head['traffic']}, {head['concurrency']} at once, temperature {head['temperature']}", flush=True)
    for row in table:
        print(
            f"  {row['policy']:12}{row['tokens_per_s']:9.1f} tokens/s{row['ratio_to_plain']:8.3f}x plain"
            f"{row['acceptance_length']:7.2f} accepted   TTFT {row['ttft_ms']:8.1f} ms"
            f"   identical {row['identical']}",
            flush=True,
        )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--policies", nargs="+", help="only these, beside plain")
    parser.add_argument("--traffic", nargs="+", choices=("closed", "mixed"), default=["closed", "mixed"])
    parser.add_argument("--quick", action="store_true", help="three rounds of fewer questions")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds = 3
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    arguments = parse(argv)
    from vllm_specvlm import zoo

    target, draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    chosen = [p for p in policies(draft) if not arguments.policies or p.name in ("plain", *arguments.policies)]
    settings = {
        "model": target,
        "dtype": arguments.dtype,
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": max(arguments.concurrency),
        "kv_cache_memory_bytes": 640 << 20,
        "enable_prefix_caching": False,
    }
    engines = start(chosen, settings)
    most = max(arguments.concurrency)
    pool = held_out.prompts(arguments.target, max(64, 2 * most), seed=3)
    for temperature in (0.0, 1.0):
        measure(engines, [closed(pool[:4], temperature, 16)], 2)
    table: list[dict[str, Any]] = []

    def take(rounds: Sequence[Sequence[Question]], setting: dict[str, Any]) -> None:
        table.extend(rows(measure(engines, rounds, setting["concurrency"]), setting))
        show(table[-len(engines) :])

    chance = random.Random(0)
    if "closed" in arguments.traffic:
        for concurrency in arguments.concurrency:
            count = min(max(6, 2 * concurrency), most) if arguments.quick else max(16, min(8 * concurrency, 96))
            for temperature in arguments.temperature:
                rounds = [
                    closed(chance.sample(pool, min(count, len(pool))), temperature, arguments.max_tokens)
                    for _ in range(arguments.rounds)
                ]
                take(rounds, {"traffic": "closed", "concurrency": concurrency, "temperature": temperature})
    if "mixed" in arguments.traffic:
        rounds = [
            mixed(chance.choices(pool, k=96 if arguments.quick else 192), 24, 0.5, seed)
            for seed in range(arguments.rounds)
        ]
        take(rounds, {"traffic": "mixed", "concurrency": most, "temperature": None})
    tallies = {name: tally for name, engine in engines.items() if (tally := engine.tally()) is not None}
    for engine in engines.values():
        engine.close()
    if arguments.json:
        write_report(
            arguments.json, "load", argv, {"dtype": arguments.dtype, "compiled": False}, table, tallies=tallies
        )


if __name__ == "__main__":
    main()
