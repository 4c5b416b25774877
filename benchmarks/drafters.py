"""What each drafter is worth, by task and by what it sees: feature heads with their compressors, and the draft VLM.

Greedy, one request at a time; every drafter in an engine of its own, taking turns with plain vLLM. `picture` is what
the *drafter* sees, the target always sees the right one. `tpot_speedup` compares the median time per token after the
first, `e2e_speedup` whole answers, `ttft_ratio` the median time to the first token; `prefill_ms` is what the drafter
computes for a prompt before its first tree. With --again each question is one that was answered before in its chat,
and is asked once more. A draft called `lookup` is the drafter without a model, `NAME+lookup` is NAME with lookup merged
into its trees.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import held_out
from draft_sight import PICTURES, show
from engine import Engine, Method, Question, Round, acceptance_length, median_tpot_ms, start
from machine import write_report


def methods(drafts: Sequence[str], shape: dict[str, Any]) -> list[Method]:
    """Plain vLLM, and a method per draft, named after its folder or name.

    Raises:
        ValueError: two drafts have one name.
    """
    names = [draft_name(draft) for draft in drafts]
    if len(set(names)) < len(names):
        raise ValueError(f"Two drafts are called the same ({', '.join(names)}); rename a folder.")
    ours = [Method(draft_name(draft), {"method": "specvlm", **drafting(draft), **shape}) for draft in drafts]
    return [Method("plain", None), *ours]


def draft_name(draft: str) -> str:
    """The folder's; of a run's checkpoint the run's."""
    mixed = "+lookup" if draft.endswith("+lookup") else ""
    *above, last = draft.removesuffix(mixed).rstrip("/").split("/")
    return (above[-1] if above and last.startswith("step-") else last) + mixed


def drafting(draft: str) -> dict[str, Any]:
    """The options that make a draft of this name."""
    if draft == "lookup":
        return {}
    from vllm_specvlm import zoo
    from vllm_specvlm.draft import head_config

    model = draft.removesuffix("+lookup")
    found = {"model": model, "with_lookup": True} if model != draft else {"model": model}
    # A head that does not look has to be wanted.
    return {**found, "text_only_draft": True} if head_config.is_blind(zoo.resolve(model)) else found


def compressor(draft: str, visual: int) -> dict[str, Any]:
    """`compressor`, `ratio` and the `visual_tokens` that it leaves of `visual` ones; None for other drafts than heads.

    Of a gate that selects, the tokens are those of its greatest branch.
    """
    from vllm_specvlm import zoo
    from vllm_specvlm.compress import count
    from vllm_specvlm.draft import head_config

    folder = zoo.resolve(drafting(draft).get("model", ""))
    if not head_config.is_head(folder):
        return {"compressor": None, "ratio": None, "visual_tokens": None}
    config = head_config.read_config(folder)[0].compressor
    return {"compressor": config.kind, "ratio": config.ratio or None, "visual_tokens": count.count(config, visual)}


def visual_tokens(target: str) -> int:
    """Visual tokens of a picture, for targets that have a fixed number: LLaVA's."""
    return int(json.loads((Path(target) / "config.json").read_text())["image_seq_length"])


def ask(engine: Engine, questions: Sequence[Question]) -> list[Round]:
    """Each question by itself."""
    return [engine.ask([question], 1) for question in questions]


def prefill_ms(engine: Engine, questions: Sequence[Question], planned: bool) -> float | None:
    """Milliseconds in the drafter's passes between the first token and the first tree; None without a drafter."""
    if engine.tally() is None:
        return None
    engine.call(show, "right")
    if planned:
        engine.call("specvlm_force", 1)  # the planner would not draft for so short an answer
    spent = []
    for question in questions:
        first = engine.tally()
        engine.ask([Question(question.prompt, 0.0, 3, question.seed)], 1)
        second = engine.tally()
        assert first is not None and second is not None
        spent.append(1e3 * (second["seconds"]["draft_model"] - first["seconds"]["draft_model"]))
    return round(statistics.median(spent), 3)


def row(mine: Sequence[Round], plain: Sequence[Round], setting: dict[str, Any]) -> dict[str, Any]:
    """One drafter on one task, compared with plain vLLM answer by answer."""
    pairs = list(zip(mine, plain, strict=True))

    def ttft(rounds: Sequence[Round]) -> float:
        return statistics.median(r.answers[0].ttft_ms for r in rounds)

    return {
        **setting,
        "acceptance_length": round(acceptance_length(mine), 3),
        "tpot_ms": round(median_tpot_ms(mine), 3),
        "tpot_speedup": round(median_tpot_ms(plain) / median_tpot_ms(mine), 3),
        "e2e_speedup": round(statistics.median((b.seconds / b.tokens) / (a.seconds / a.tokens) for a, b in pairs), 3),
        "ttft_ratio": round(ttft(mine) / ttft(plain), 3),
        "identical": all(a.answers[0].token_ids == b.answers[0].token_ids for a, b in pairs),
        "answers": len(pairs),
        "tokens": sum(a.tokens for a in mine),
    }


def profile(
    mine: Sequence[Round], plain: Sequence[Round], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Where the time of all answers behind their first tokens went, in seconds; `before` and `after` are tallies.

    All drafting is: it begins when the first token has been handed out, and none follows the last.
    """

    def decoding(rounds: Sequence[Round]) -> float:
        answers = [answer for each in rounds for answer in each.answers]
        return sum(a.tpot_ms * (len(a.token_ids) - 1) for a in answers if a.tpot_ms is not None) / 1e3

    def counted(name: str) -> int:
        return int(after[name] - before[name])

    drafted, passes, verified = (
        after["seconds"][name] - before["seconds"][name] for name in ("draft", "draft_model", "verify")
    )
    return {
        "acceptance_length": round(acceptance_length(mine), 3),
        "plain_s": round(decoding(plain), 4),
        "own_s": round(decoding(mine), 4),
        "passes_s": round(passes, 4),
        "python_s": round(drafted - passes + verified, 4),
        "level_ms": round(1e3 * passes / max(counted("levels"), 1), 3),
        "nodes": round(counted("nodes") / max(counted("trees"), 1), 2),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/reference-target")
    parser.add_argument("--drafts", nargs="+", default=["specvlm/reference-draft", "specvlm/reference-head"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=int, default=64, help="questions in all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--nodes", type=int, help="trees of so many nodes, without the planner")
    parser.add_argument("--again", action="store_true", help="ask once more what was answered already in the same chat")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--quick", action="store_true", help="24 questions of 48 tokens, right pictures only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.prompts, arguments.max_tokens, arguments.pictures = 24, 48, ["right"]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    arguments = parse(argv)
    from vllm_specvlm import zoo

    target = zoo.resolve(arguments.target)
    visual = visual_tokens(target)
    shape = {} if arguments.nodes is None else {"num_speculative_tokens": arguments.nodes, "planner": False}
    settings = {
        "model": target,
        "dtype": arguments.dtype,
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 1,
        "kv_cache_memory_bytes": 256 << 20,
        "enable_prefix_caching": False,
    }
    engines = start(methods(arguments.drafts, shape), settings)
    asked = held_out.questions(arguments.target, arguments.prompts, seed=7)
    if arguments.again:
        first = ask(engines["plain"], [Question(each.prompt, 0.0, arguments.max_tokens, 0) for each in asked])
        asked = held_out.again(arguments.target, asked, [each.answers[0].token_ids for each in first])
    questions = [Question(each.prompt, 0.0, arguments.max_tokens, seed) for seed, each in enumerate(asked)]
    for engine in engines.values():
        ask(engine, questions[:4])
    table: list[dict[str, Any]] = []
    profiles: dict[str, dict[str, Any]] = {}
    for pictures in arguments.pictures:
        rounds: dict[str, list[Round]] = {name: [] for name in engines}
        before = {name: engine.tally() for name, engine in engines.items()}
        for name, engine in engines.items():
            if name != "plain":
                engine.call(show, pictures)
        for _ in range(arguments.repeats):
            for question in questions:
                for name, engine in engines.items():
                    rounds[name].append(engine.ask([question], 1))
        if pictures == "right":
            for name, engine in engines.items():
                first, second = before[name], engine.tally()
                if first is not None and second is not None:
                    profiles[name] = profile(rounds[name], rounds["plain"], first, second)
        kinds = [each.kind for each in asked] * arguments.repeats
        for draft in arguments.drafts:
            mine = rounds[draft_name(draft)]
            for task in (*sorted(set(kinds)), "all"):
                at = [i for i, kind in enumerate(kinds) if task in (kind, "all")]
                setting = {"drafter": draft_name(draft), **compressor(draft, visual), "task": task, "picture": pictures}
                table.append(row([mine[i] for i in at], [rounds["plain"][i] for i in at], setting))
        print_rows([r for r in table if r["picture"] == pictures])
    planned = arguments.nodes is None
    prefills = {name: prefill_ms(engine, questions[:16], planned) for name, engine in engines.items()}
    print("drafter's prefill, ms:", prefills, flush=True)
    tallies = {name: tally for name, engine in engines.items() if (tally := engine.tally()) is not None}
    for engine in engines.values():
        engine.close()
    if arguments.json:
        write_report(
            arguments.json,
            "drafters",
            argv,
            {"dtype": arguments.dtype, "compiled": False},
            table,
            prefill_ms=prefills,
            tallies=tallies,
            profiles=profiles,
        )


def print_rows(table: Sequence[dict[str, Any]]) -> None:
    """Print rows as text."""
    for r in table:
        print(
            f"{r['drafter']:28}{r['compressor'] or '-':10}{r['task']:10}{r['picture']:6}"
            f"{r['acceptance_length']:7.2f} accepted{r['tpot_speedup']:7.2f}x TPOT{r['e2e_speedup']:7.2f}x end to end"
            f"{r['ttft_ratio']:7.3f} TTFT   identical {r['identical']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
