"""Trained drafters of one target side by side: what their passes cost here, and what each is expected to give.

For choosing among checkpoints before any of them serves, such as early exits behind one, two and three layers.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_specvlm.cli.console import UserError, bold
from vllm_specvlm.schedule.expectation import Expectation, expect, rate
from vllm_specvlm.schedule.profile import Profile

Measure = Callable[[str], Profile]


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint of `specvlm train` and how its last check on held-out conversations went."""

    folder: str
    name: str
    layers: int | None
    """Of the target that it runs, if it is an early exit."""
    held_out: float
    """Tokens a check, with chains of `chain`."""
    chain: int


def trained(folder: str) -> Trained:
    """What a checkpoint says of itself. Raises UserError if it is none, or was never checked."""
    from vllm_specvlm.draft import exit_config

    where = Path(folder)
    try:
        said = json.loads((where / "provenance.json").read_text())
        held_out, chain = float(said["held_out"]["chain"]), int(said["recipe"]["check"]["chain"])
        layers = exit_config.read_config(where)[0].layers if exit_config.is_exit(where) else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} has no provenance.json with a held-out check ({type(error).__name__}): name a checkpoint of a"
            " recipe whose [check] was on."
        ) from error
    name = f"{where.parent.name}/{where.name}" if where.name.startswith("step-") else where.name
    return Trained(folder, name, layers, held_out, chain)


def measured_apart(arguments: Sequence[str]) -> Measure:
    """Profiles of one request at a time, each by a calibration in a process of its own with these arguments."""

    def measure(draft: str) -> Profile:
        line = [sys.executable, "-m", "vllm_specvlm.cli", "calibrate", *arguments, "--draft", draft]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(f"{draft} was not measured; what its engine said stands above.")
        return Profile.from_dict(json.loads(done.stdout))

    return measure


def compare(folders: Sequence[str], measure: Measure, context: float) -> list[dict[str, Any]]:
    """A row per checkpoint as plain values, behind `context` tokens; times in milliseconds."""
    drafts = [trained(folder) for folder in folders]
    rows = []
    for draft in drafts:
        profile = measure(draft.folder)
        best = expect(profile, rate(draft.held_out, draft.chain), context)
        rows.append(_row(draft, best, profile.costs.draft.at(1)) | {"measured_with": dataclasses.asdict(profile.key)})
    return rows


def _row(draft: Trained, best: Expectation, level: float) -> dict[str, Any]:
    return {
        "drafter": draft.name,
        "layers": draft.layers,
        "held_out": round(draft.held_out, 3),
        "chain": draft.chain,
        "level_ms": round(1e3 * level, 3),
        "depth": best.depth,
        "tokens": round(best.tokens, 3),
        "plain_ms": round(1e3 * best.plain, 3),
        "check_ms": round(1e3 * best.check, 3),
        "passes_ms": round(1e3 * best.passes, 3),
        "overhead_ms": round(1e3 * best.overhead, 3),
        "speedup": round(best.speedup, 3),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people to read; the best is marked."""
    best = max(row["speedup"] for row in rows)
    lines = [
        bold(
            f"{'drafter':28}{'layers':>7}{'held out':>10}{'level ms':>10}{'chains of':>11}{'tokens':>8}{'plain ms':>10}"
            f"{'check ms':>10}{'passes ms':>11}{'Python ms':>11}{'expected':>10}"
        )
    ]
    for row in rows:
        layers = row["layers"]
        lines.append(
            f"{row['drafter']:28}{'-' if layers is None else layers:>7}{row['held_out']:>10.2f}{row['level_ms']:>10.2f}"
            f"{row['depth']:>11}{row['tokens']:>8.2f}{row['plain_ms']:>10.2f}{row['check_ms']:>10.2f}"
            f"{row['passes_ms']:>11.2f}{row['overhead_ms']:>11.2f}{row['speedup']:>9.2f}x"
            f"{'*' if row['speedup'] == best else ''}"
        )
    return "\n".join(lines)
