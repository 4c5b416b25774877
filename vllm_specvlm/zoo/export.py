"""Turn training states into the parts that ship: ``python -m vllm_specvlm.zoo.export --work DIR``.

Writes ``parts/target.safetensors``, ``parts/draft.safetensors``, the curves (CSV), ``parts/provenance.json``, and the
sample picture.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm_specvlm.zoo import parts, train_draft, train_sight, train_target
from vllm_specvlm.zoo.pictures import DATA_VERSION, draw, sample_scene
from vllm_specvlm.zoo.prompts import SAMPLE_SEED, sample_picture
from vllm_specvlm.zoo.training import load_state

STAGES = ("target_sight", "draft_sight", "target", "draft_words", "draft_distil")
# What the scripts' defaults do not tell about the run behind the parts that ship.
HISTORY = (
    "target_sight and draft_sight: planned for 2500 steps, cut to 1300 and 2000 while the rate was still flat.",
    "target: five pictures per process and a plain-text conversation every second step up to step 200; then two"
    " pictures, and plain text every fourth step. Running mean since step 350. Drills every second step since 500.",
    "draft_words: 24 pictures a step up to step 400, then 12. Running mean since step 1100, naming loss since 1300,"
    " drills in two steps of three since 1700 (until then the draft was blind), two processes since 4100.",
    "Planned lengths changed on the way: the rate fell only over the last steps of the target, from step 840.",
    "All at the lowest priority on a machine shared with other work: wall times do not measure the training's cost.",
)


def tidy_curve(source: Path, target: Path) -> list[dict[str, str]]:
    """Copy a curve, keeping the last row of every step: a killed run repeats the steps since its last state."""
    with source.open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    kept = [rows[step] for step in sorted(rows)]
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    return kept


def minutes(rows: list[dict[str, str]]) -> float:
    """Wall time over all sessions of a stage: ``seconds`` starts again in every session."""
    total = last = 0.0
    for row in rows:
        now = float(row["seconds"])
        if now < last:
            total += last
        last = now
    return round((total + last) / 60, 1)


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    rng = random.Random(SAMPLE_SEED)
    sample_picture().parent.mkdir(exist_ok=True)
    draw(sample_scene(rng, "test"), rng).save(sample_picture(), optimize=True)
    target = load_state(work / "target.pt")
    finished = (work / "draft_distil.pt").exists()
    draft = load_state(work / ("draft_distil.pt" if finished else "draft_words.pt"))
    parts.save("target", target["mean"])
    parts.save("draft", draft["mean"])
    stages: dict[str, Any] = {}
    for stage in STAGES:
        if (work / f"{stage}.csv").exists():
            rows = tidy_curve(work / f"{stage}.csv", parts.FOLDER / f"curve_{stage}.csv")
            stages[stage] = {"steps": int(rows[-1]["step"]), "wall_minutes": minutes(rows), "last_row": rows[-1]}
    provenance = {
        "data_version": DATA_VERSION,
        "chat_sha256": hashlib.sha256((work / "chat.json").read_bytes()).hexdigest(),
        "language_model": {"package": parts.PACKAGE, "gguf_sha256": parts.GGUF_SHA256},
        "seeds": {"sight": train_sight.SEED, "target": train_target.SEED, "draft": train_draft.SEED},
        "stages": stages,
        "history": HISTORY,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "note": "shared with other work; wall times are upper bounds",
        },
        "versions": {
            name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
        },
        "parts_sha256": {name: hashlib.sha256(parts.path(name).read_bytes()).hexdigest() for name in parts.NAMES},
    }
    (parts.FOLDER / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
