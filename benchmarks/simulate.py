"""How well the simulator predicts: record a trace on the reference pair, predict loads with it, and run them.

The profile is `specvlm calibrate`'s, made here unless one is given. Every engine answers all prompts once at each
concurrency before anything counts, so that pictures are in its caches, as they are when the trace is recorded, and the
planner knows the load. `error` is predicted over measured tokens per second, less one. Real rounds take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from engine import Engine, Method, Question, Round, acceptance_length, start
from machine import write_report

from vllm_specvlm.schedule import trace
from vllm_specvlm.schedule.profile import Profile
from vllm_specvlm.schedule.simulator import Prediction, simulate
from vllm_specvlm.schedule.trace import TracedRequest
from vllm_specvlm.tree.tree_shape import TreeShape

POLICIES = ("plain", "chain-5", "tree-8", "planned")
SHAPE = TreeShape(nodes=32, depth=6, width=4, top_k=4)
"""Of the planned trees and of the recorded ones."""


def methods(draft: str, profile: Path) -> list[Method]:
    """The engines of the policies; the planner's starts from the same profile as the simulated one."""
    ours = {"method": "specvlm", "model": draft, "depth": SHAPE.depth, "width": SHAPE.width, "top_k": SHAPE.top_k}
    return [
        Method("plain", None),
        Method("chain-5", {**ours, "num_speculative_tokens": 5, "tree": "chain", "depth": 5}),
        Method("tree-8", {**ours, "num_speculative_tokens": 8, "planner": False}),
        Method("planned", {**ours, "num_speculative_tokens": SHAPE.nodes, "profile": str(profile)}),
    ]


def calibrated(arguments: argparse.Namespace, path: Path) -> Path:
    """A profile at `path`, measured in a process of its own."""
    command = [sys.executable, "-m", "vllm_specvlm.cli", "calibrate", "--target", arguments.target]
    command += ["--draft", arguments.draft, "--dtype", arguments.dtype, "--batch", str(max(arguments.concurrency))]
    command += [
        "--contexts",
        *map(str, arguments.contexts),
        "--out",
        str(path),
        *(["--quick"] if arguments.quick else []),
    ]
    subprocess.run(command, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind", **os.environ}, check=True)
    return path


def record(engine: Engine, questions: Sequence[Question]) -> list[TracedRequest]:
    """The trace of the questions, one at a time, with the time that each took to its first token."""
    engine.call("specvlm_record")
    answers = engine.ask(questions, 1).answers
    requests = [TracedRequest.from_dict(saved) for saved in engine.call("specvlm_recorded")]
    # An answer of one token is not drafted for and so not recorded.
    told = [answer for answer in answers if len(answer.token_ids) > 1]
    return [
        dataclasses.replace(request, prompt_seconds=round(answer.ttft_ms / 1e3, 6))
        for request, answer in zip(requests, told, strict=True)
    ]


def compare(
    engines: dict[str, Engine], questions: Sequence[Question], concurrency: int, repeats: int
) -> dict[str, list[Round]]:
    """Real rounds by policy, one for each repetition after one that does not count."""
    rounds: dict[str, list[Round]] = {name: [] for name in engines}
    for repeat in range(repeats + 1):
        for name, engine in engines.items():
            answered = engine.ask(questions, concurrency)
            if repeat:
                rounds[name].append(answered)
    return rounds


def row(policy: str, concurrency: int, rounds: Sequence[Round], predicted: Prediction) -> dict[str, Any]:
    """A point of the report."""
    measured = sum(answered.tokens for answered in rounds) / sum(answered.seconds for answered in rounds)
    return {
        "policy": policy,
        "concurrency": concurrency,
        "measured_tokens_per_s": round(measured, 2),
        "runs_tokens_per_s": [round(answered.tokens / answered.seconds, 2) for answered in rounds],
        "predicted_tokens_per_s": round(predicted.tokens_per_s, 2),
        "error": round(predicted.tokens_per_s / measured - 1, 4),
        "measured_acceptance_length": round(acceptance_length(rounds), 3),
        "predicted_acceptance_length": round(predicted.acceptance_length, 3),
        "predicted_plans": dict(predicted.plans),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--draft", default="specvlm/reference-draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[96], help="to calibrate at: prompts and half the answers"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="of `specvlm calibrate` (default: calibrate first)"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="keep the recorded trace here")
    parser.add_argument("--quick", action="store_true", help="4 prompts, 24 tokens, once, a rough profile: does it run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.prompts, arguments.max_tokens, arguments.repeats = 4, 24, 1
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, record, predict, measure, compare."""
    arguments = parse(argv)
    from vllm_specvlm import zoo

    prompts = held_out.prompts(arguments.target, arguments.prompts, seed=1)
    arguments.target, arguments.draft = zoo.resolve(arguments.target), zoo.resolve(arguments.draft)
    settings = {
        "model": arguments.target,
        "dtype": arguments.dtype,
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": max(arguments.concurrency),
        "kv_cache_memory_bytes": 1 << 30,
        "enable_prefix_caching": False,
    }
    questions = [Question(prompt, 0.0, arguments.max_tokens, seed) for seed, prompt in enumerate(prompts)]
    with tempfile.TemporaryDirectory(prefix="specvlm-simulate-") as folder:
        path = arguments.profile or calibrated(arguments, Path(folder) / "profile.json")
        profile = Profile.load(path)
        engines = start(methods(arguments.draft, path.absolute()), settings)
    for engine in engines.values():
        engine.ask(questions, max(arguments.concurrency))  # warm up
    requests = record(engines["planned"], questions)
    if arguments.trace:
        trace.write(arguments.trace, requests)
    rows = []
    for concurrency in arguments.concurrency:
        # Several rounds of everybody, the same requests for both.
        count = max(len(questions), 2 * concurrency)
        asked = list(itertools.islice(itertools.cycle(questions), count))
        replayed = list(itertools.islice(itertools.cycle(requests), count))
        measured = compare(engines, asked, concurrency, arguments.repeats)
        for policy in POLICIES:
            predicted = simulate(replayed, profile.costs, profile.overhead, policy, concurrency, SHAPE, warm=True)
            rows.append(row(policy, concurrency, measured[policy], predicted))
            show(rows[-1])
    tally = engines["planned"].tally()
    for engine in engines.values():
        engine.close()
    if arguments.json:
        write_report(
            arguments.json,
            "simulate",
            argv,
            {"dtype": arguments.dtype, "compiled": False},
            rows,
            key=dataclasses.asdict(profile.key),
            largest_error=max(abs(found["error"]) for found in rows),
            planned_tally=tally,
        )


def show(found: dict[str, Any]) -> None:
    """Print a point: rates, and in brackets tokens per verified tree."""
    rates = (
        f"{which} {found[which + '_tokens_per_s']:7.1f} tokens/s ({found[which + '_acceptance_length']:.2f})"
        for which in ("measured", "predicted")
    )
    where = f"{found['concurrency']:>3} at once  {found['policy']:8}"
    print(where, *rates, f"error {found['error']:+.1%}", sep="  ", flush=True)


if __name__ == "__main__":
    main()
