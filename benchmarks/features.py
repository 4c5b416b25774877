"""What requests with penalties, a grammar or log-probs gain from trees, and what they cost the requests beside them.

First each feature alone, one greedy request at a time: time per output token against plain vLLM under the same feature,
the median over all answers of all rounds, and round by round.
Then batches of greedy requests without any feature, and one guest among them that outlasts them: with a feature, and
without. What the others answer in a second, the one against the other, is what the guest's feature costs them. Plain
vLLM has such a cost of its own, which is measured beside it. How many answers are those of plain vLLM is counted.
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

PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.2}
JSON = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 120}, "count": {"type": "integer"}},
    "required": ["answer", "count"],
    "additionalProperties": False,
}
ALONE: dict[str, dict[str, Any]] = {
    "none": {},
    "penalties": PENALTIES,
    "log-probs": {"logprobs": 5},
    "grammar: a sentence": {"structured_outputs": {"regex": "[A-Z][A-Za-z0-9 ,'-]{4,160}\\."}},
    "grammar: lower case": {"structured_outputs": {"regex": "[a-z]+(,? [a-z]+){2,30}\\."}},
    "grammar: JSON": {"structured_outputs": {"json": JSON}},
}
GUESTS: dict[str, dict[str, Any]] = {
    "none": {},
    "penalties": PENALTIES,
    "log-probs": {"logprobs": 5},
    "grammar": {"structured_outputs": {"regex": "[A-Za-z0-9 ,.'-]{2000,}"}},
}
"""What one request among others uses; its grammar does not end before the others do."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--prompts", type=int, default=8, help="of each feature alone, in every round")
    parser.add_argument("--neighbours", type=int, default=7, help="requests beside the guest")
    parser.add_argument("--rounds", type=int, default=6, help="of batches; features alone take half of them")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="two rounds of few prompts: to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.prompts, arguments.neighbours, arguments.rounds = 3, 3, 2
    return arguments


def question(prompt: dict[str, Any], max_tokens: int, features: dict[str, Any]) -> Question:
    """A greedy one."""
    more = dict(features)
    return Question(prompt, 0.0, max_tokens, 0, logprobs=more.pop("logprobs", None), features=more)


def alone(engines: dict[str, Engine], prompts: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> list[Any]:
    """A row per feature: one request at a time, engines in turn."""
    rows = []
    for name, features in ALONE.items():
        asked = [question(prompt, arguments.max_tokens, features) for prompt in prompts]
        for engine in engines.values():
            engine.ask(asked[:2], 1)  # grammars are compiled once
        rounds: dict[str, list[Round]] = {method: [] for method in engines}
        for _ in range(max(1, arguments.rounds // 2)):
            for method, engine in engines.items():
                rounds[method].append(engine.ask(asked, 1))
        plain, ours = median_tpot_ms(rounds["plain"]), median_tpot_ms(rounds["planner"])
        speedups = [median_tpot_ms([a]) / median_tpot_ms([b]) for a, b in zip(*rounds.values(), strict=True)]
        seconds = {method: sum(each.seconds for each in found) for method, found in rounds.items()}
        rows.append(
            {
                "what": "alone",
                "feature": name,
                "tpot_ms": round(ours, 3),
                "plain_tpot_ms": round(plain, 3),
                "speedup": round(plain / ours, 3),
                "speedups": [round(ratio, 3) for ratio in speedups],
                "speedup_end_to_end": round(seconds["plain"] / seconds["planner"], 3),
                "acceptance_length": round(acceptance_length(rounds["planner"]), 3),
                "identical": identical(rounds["planner"][0], rounds["plain"][0]),
                "answers": len(asked),
            }
        )
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def identical(ours: Round, plain: Round) -> int:
    """How many answers are the same, token for token."""
    return sum(a.token_ids == b.token_ids for a, b in zip(ours.answers, plain.answers, strict=True))


def others_rate(answered: Round) -> float:
    """Tokens a second of all answers but the last one's, until the last of them has ended."""
    others = answered.answers[:-1]
    ends = [each.ttft_ms + (each.tpot_ms or 0.0) * (len(each.token_ids) - 1) for each in others]
    guest = answered.answers[-1]
    if guest.ttft_ms + (guest.tpot_ms or 0.0) * (len(guest.token_ids) - 1) < max(ends):
        raise SystemExit("The guest ended before the others: give it more tokens.")
    return 1e3 * sum(len(each.token_ids) for each in others) / max(ends)


def beside(engines: dict[str, Engine], prompts: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> list[Any]:
    """A row per feature of the guest: what it costs the others, in our engine and in plain vLLM.

    What it says of answers is of whole batches.
    """
    size = arguments.neighbours + 1
    batches = [prompts[at : at + size] for at in range(0, len(prompts) - size + 1, size)]
    rates: dict[tuple[str, str], list[float]] = {(method, name): [] for method in engines for name in GUESTS}
    same: dict[str, list[bool]] = {name: [] for name in GUESTS}
    # The first round is thrown away: grammars are compiled, the planner learns.
    for number in range(arguments.rounds + 1):
        batch = batches[number % len(batches)]
        for name, features in GUESTS.items():
            guest = question(batch[-1], 4 * arguments.max_tokens, {**features, "ignore_eos": True})
            asked = [*(question(prompt, arguments.max_tokens, {}) for prompt in batch[:-1]), guest]
            found = {method: engine.ask(asked, size) for method, engine in engines.items()}
            if not number:
                continue
            for method, answered in found.items():
                rates[method, name].append(others_rate(answered))
            same[name].append(identical(found["planner"], found["plain"]) == size)
    rows = []
    for name in GUESTS:
        # Round by round, since the questions of rounds differ, and so does the machine's temper.
        ratios = {
            method: [rate / free for rate, free in zip(rates[method, name], rates[method, "none"], strict=True)]
            for method in engines
        }
        rows.append(
            {
                "what": f"beside {arguments.neighbours} others",
                "feature": name,
                "others_tokens_per_second": round(statistics.median(rates["planner", name]), 1),
                "others_ratio": round(statistics.median(ratios["planner"]), 3),
                "others_ratios": [round(ratio, 3) for ratio in ratios["planner"]],
                "plain_others_ratio": round(statistics.median(ratios["plain"]), 3),
                "plain_others_ratios": [round(ratio, 3) for ratio in ratios["plain"]],
                "others_speedup": round(
                    statistics.median(
                        ours / plain for ours, plain in zip(rates["planner", name], rates["plain", name], strict=True)
                    ),
                    3,
                ),
                "identical": sum(same[name]),
                "answers": len(same[name]),
            }
        )
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the file."""
    arguments = parse(argv)
    from vllm_specvlm import zoo

    settings = {
        "model": zoo.resolve(arguments.target),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": arguments.neighbours + 1,
        "kv_cache_memory_bytes": 512 << 20,
        "enable_prefix_caching": False,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    ours = {"method": "specvlm", "model": zoo.resolve(arguments.draft)}
    engines = start([Method("plain", None), Method("planner", ours)], settings)
    prompts = held_out.prompts(arguments.target, 4 * (arguments.neighbours + 1), seed=6)
    try:
        rows = [*alone(engines, prompts[: arguments.prompts], arguments), *beside(engines, prompts, arguments)]
    finally:
        for engine in engines.values():
            engine.close()
    if arguments.json:
        write_report(arguments.json, "features", argv, {"dtype": "float32", "compiled": False}, rows)


if __name__ == "__main__":
    main()
