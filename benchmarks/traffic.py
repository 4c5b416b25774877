"""A drafter learns from recorded traffic: record it, and count what drafters accept of it and elsewhere.

    python benchmarks/traffic.py record --draft HEAD --log LOG     # a server that records, and clients
    specvlm train benchmarks/recipes/scenes-head-traffic.toml --from-log LOG --out RUN
    python benchmarks/traffic.py compare HEAD RUN/step-000192 --json FILE

The traffic is of a kind that heads of the scenes target never saw: questions about the reference target's drawings.
Held-out questions of it are new pictures and new draws of the wording. `compare` counts tokens a check, greedy, trees
of a fixed size, one request at a time; counts do not depend on the machine's speed. Drafts as in `drafters.py`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import held_out
from drafters import draft_name, drafting
from engine import Engine, Method, Question, Round, acceptance_length
from machine import write_report
from server import Server, chat

TARGET, OTHER = "specvlm/scenes-target", "specvlm/reference-target"
_RECORDED_SEED, _HELD_OUT_SEED = 2000, 7


def record(arguments: argparse.Namespace) -> None:
    """Serve, ask, and stop when all is written."""
    speculative = {"method": "specvlm", "model": arguments.draft}
    server = Server(TARGET, "float32", speculative, Path(f"{arguments.log}.server"), ["--record", str(arguments.log)])
    asked = held_out.questions(TARGET, arguments.questions, _RECORDED_SEED, of=OTHER)

    def ask(number: int) -> int:
        body = {
            "model": "model",
            "messages": chat(asked[number]),
            "max_tokens": 64,
            "temperature": 0.0 if number % 4 else 1.0,
            "seed": number,
            "stream": number % 2 == 0,
        }
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status

    try:
        server.wait()
        with ThreadPoolExecutor(8) as clients:
            statuses = list(clients.map(ask, range(len(asked))))
        for _ in range(50):  # answers are out before they are written
            written = len(list((arguments.log / "exchanges").glob("*.json")))
            if written >= statuses.count(200):
                break
            time.sleep(0.2)
    finally:
        server.stop()
    print(f"{written} of {len(asked)} exchanges recorded, {statuses.count(200)} answered")


def compare(arguments: argparse.Namespace) -> None:
    """Each drafter on held-out traffic and on the target's own tasks."""
    settings = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 1,
        "kv_cache_memory_bytes": 256 << 20,
        "enable_prefix_caching": False,
    }
    from vllm_specvlm import zoo

    traffic = held_out.questions(TARGET, arguments.prompts, _HELD_OUT_SEED, of=OTHER)
    elsewhere = held_out.questions(TARGET, arguments.prompts, _HELD_OUT_SEED)
    asked = [(each.prompt, "traffic") for each in traffic] + [(each.prompt, each.kind) for each in elsewhere]
    questions = [Question(prompt, 0.0, arguments.max_tokens, seed) for seed, (prompt, _) in enumerate(asked)]
    rounds: dict[str, list[Round]] = {}
    for draft in ("plain", *arguments.drafts):
        ours = {"method": "specvlm", **drafting(draft), "num_speculative_tokens": arguments.nodes, "planner": False}
        engine = Engine(Method(draft, None if draft == "plain" else ours), {**settings, "model": zoo.resolve(TARGET)})
        engine.ready()
        rounds[draft] = [engine.ask([question], 1) for question in questions]
        engine.close()
    names = arguments.names or [draft_name(draft) for draft in arguments.drafts]
    table: list[dict[str, Any]] = []
    kinds = [kind for _, kind in asked]
    for task in (*sorted(set(kinds)), "elsewhere"):
        at = [i for i, kind in enumerate(kinds) if task in (kind, "elsewhere" if kind != "traffic" else "")]
        lengths = [acceptance_length([rounds[draft][i] for i in at]) for draft in arguments.drafts]
        same = all(
            rounds[draft][i].answers[0].token_ids == rounds["plain"][i].answers[0].token_ids
            for draft in arguments.drafts
            for i in at
        )
        table += [
            {
                "drafter": name,
                "task": task,
                "acceptance_length": round(length, 3),
                "against_first": round(length / lengths[0], 3),
                "answers": len(at),
                "identical": same,
            }
            for name, length in zip(names, lengths, strict=True)
        ]
    for row in table:
        print(
            f"{row['drafter']:32}{row['task']:12}{row['acceptance_length']:7.3f} tokens a check "
            f"({row['against_first']:.3f}x)  {row['answers']} answers, identical {row['identical']}"
        )
    if arguments.json:
        mode = {"dtype": "float32", "compiled": False, "nodes": arguments.nodes}
        asked_for = ["--prompts", str(arguments.prompts), "--max-tokens", str(arguments.max_tokens)]
        write_report(arguments.json, "traffic", ["compare", *names, *asked_for], mode, table)


def main(argv: Sequence[str] | None = None) -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.set_defaults(run=record)
    recording.add_argument("--draft", required=True, help="the drafter that serves while it is recorded")
    recording.add_argument("--log", type=Path, required=True)
    recording.add_argument("--questions", type=int, default=384)
    comparing = commands.add_parser("compare")
    comparing.set_defaults(run=compare)
    comparing.add_argument("drafts", nargs="+")
    comparing.add_argument("--names", nargs="+", help="what the drafts are called in the result")
    comparing.add_argument("--prompts", type=int, default=72, help="questions of the traffic, and as many of the rest")
    comparing.add_argument("--max-tokens", type=int, default=64)
    comparing.add_argument("--nodes", type=int, default=16)
    comparing.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
