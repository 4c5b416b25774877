"""The figures of a run, one row per logged step, in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from vllm_specvlm.train import picture

COLUMNS = (
    "step", "loss", "ce", "kl", "reverse_kl", "hard_ce", "smooth_l1", "cosine",
    "intermediate", "gate", "agreement", "last_agreement", "covered",
    "visual_share", "lr", "gradient", "answer_tokens", "seconds", "chain", "tree", "held_out_agreement",
)  # fmt: skip
"""loss and its weighted parts: per slot. agreement: how often the head's best token is the target's, first step and
last. covered: the target's mass on the head's tokens. visual_share: of visual tokens the head was shown. answer_tokens
and seconds: so far. chain, tree, held_out_agreement: see `acceptance`; empty between checks."""


class Curve:
    """`curve.csv` and `curve.png` in a run's folder."""

    def __init__(self, folder: Path, first: int) -> None:
        """Rows of steps after `first`, which a killed run may have left, are dropped."""
        self._path = folder / "curve.csv"
        self._image = folder / "curve.png"
        self.rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if (row.get("step") or "x").isdecimal()]
            self.rows = [row for row in self.rows if int(row["step"]) <= first]
        self._write()

    def add(self, values: Mapping[str, float]) -> None:
        """One row; values that are missing stay empty. Raises OSError if the disk is full."""
        row = {name: _shown(values[name]) if name in values else "" for name in COLUMNS}
        self.rows.append(row)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)

    def draw(self) -> None:
        """The picture of all rows. Raises OSError if the disk is full."""
        panels = [
            ("loss", ("loss",)),
            ("tokens per check", ("chain", "tree")),
            ("agreement", ("agreement", "last_agreement")),
        ]
        points = {
            name: [(float(row["step"]), float(row[name])) for row in self.rows if row.get(name)]
            for _, names in panels
            for name in names
        }
        picture.draw(self._image, [(title, {name: points[name] for name in names}) for title, names in panels])

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self._path)


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
