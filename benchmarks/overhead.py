"""What our own Python costs a step, at one request: with a tree, and in a step without one.

With a tree: the worker's own clocks (`Tally.seconds`): verification's bending, walking and committing, and drafting
without the draft's forward passes, per step that verified a tree. Without: TPOT of an engine with the method whose
request asks for no speculation, less that of stock vLLM, interleaved; the median over the rounds of the difference of
neighbouring rounds. Each engine has a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from engine import Engine, Method, Question, median_tpot_ms, start
from machine import write_report


def tree_row(name: str, engine: Engine, prompts: Sequence[dict[str, Any]], temperature: float) -> dict[str, Any]:
    """Milliseconds of our Python per step with a tree."""
    before = engine.tally()
    assert before is not None
    engine.ask([Question(prompt, temperature, 64, seed) for seed, prompt in enumerate(prompts)], 1)
    after = engine.tally()
    assert after is not None
    steps = after["tree_steps"] - before["tree_steps"]
    spent = {name: 1e3 * (after["seconds"][name] - before["seconds"][name]) / steps for name in after["seconds"]}
    return {
        "what": f"{name}, step with a tree",
        "temperature": temperature,
        "ms": round(spent["verify"] + spent["draft"] - spent["draft_model"], 3),
        "verify_ms": round(spent["verify"], 3),
        "draft_ms": round(spent["draft"], 3),
        "draft_model_ms": round(spent["draft_model"], 3),
        "levels": round((after["levels"] - before["levels"]) / steps, 2),
        "steps": steps,
    }


def plain_row(
    ours: Engine, stock: Engine, prompts: Sequence[dict[str, Any]], temperature: float, rounds: int
) -> dict[str, Any]:
    """Milliseconds that a step without a tree takes longer than stock vLLM's."""
    off = {"specvlm": "off"}
    differences = []
    for _ in range(rounds):
        questions = [Question(prompt, temperature, 64, seed, extra_args=off) for seed, prompt in enumerate(prompts)]
        theirs, mine = (median_tpot_ms([engine.ask(questions, 1)]) for engine in (stock, ours))
        differences.append(mine - theirs)
    return {
        "what": "step without a tree, beyond stock vLLM's",
        "temperature": temperature,
        "ms": round(statistics.median(differences), 3),
        "rounds": [round(difference, 3) for difference in differences],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    from vllm_specvlm import zoo

    target, draft = zoo.resolve("specvlm/reference-target"), zoo.resolve("specvlm/reference-draft")
    ours = {"method": "specvlm", "model": draft}
    engines = start(
        [
            Method("plain", None),
            Method("chain-4", {**ours, "num_speculative_tokens": 4, "tree": "chain"}),
            Method("tree-8", {**ours, "num_speculative_tokens": 8, "planner": False}),
            Method("planner", ours),
        ],
        {
            "model": target,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_seqs": 4,
            "kv_cache_memory_bytes": 256 << 20,
            "enable_prefix_caching": False,
        },
    )
    prompts = held_out.prompts("specvlm/reference-target", 12, seed=4)
    for engine in engines.values():
        engine.ask([Question(prompt, 0.0, 64, 0) for prompt in prompts[:4]], 1)
    rows = []
    for temperature in (0.0, 1.0):
        for name in ("chain-4", "tree-8", "planner"):
            rows.append(tree_row(name, engines[name], prompts, temperature))
        rows.append(plain_row(engines["tree-8"], engines["plain"], prompts[:4], temperature, arguments.rounds))
    for row in rows:
        print(f"{row['what']:45} T={row['temperature']}: {row['ms']:7.3f} ms  {row.get('levels', '')}")
    for engine in engines.values():
        engine.close()
    if arguments.json:
        write_report(arguments.json, "overhead", argv, {"dtype": "float32", "compiled": False}, rows)


if __name__ == "__main__":
    main()
