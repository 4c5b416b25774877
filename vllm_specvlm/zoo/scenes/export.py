"""Turn training states into what ships: ``python -m vllm_specvlm.zoo.scenes.export --work DIR``.

Writes ``parts/target.safetensors``, the curves (CSV), ``parts/provenance.json``, and, with ``--test-set``, the test
pictures and their conversations in ``assets``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vllm_specvlm.zoo.export import minutes, processor, tidy_curve
from vllm_specvlm.zoo.parts import GGUF_SHA256, PACKAGE
from vllm_specvlm.zoo.scenes import parts, tasks
from vllm_specvlm.zoo.scenes.sources import DEBIAN, PYPI, Sources
from vllm_specvlm.zoo.scenes.test_set import ASSETS
from vllm_specvlm.zoo.scenes.turn import TASKS
from vllm_specvlm.zoo.training import load_state

PICTURES_PER_TASK = 10
_QUALITY = 85  # of JPEG
# What the scripts' defaults do not tell about the run behind the part that ships.
HISTORY: tuple[str, ...] = (
    "sight: run to step 320 with --steps 320, then with --steps 900, 1600 and 1500 to its end; its learning rate fell "
    "at the end of the first and of the last",
    "words: one process, batches of four; --steps 2400 to step 380, 1150 to step 870, 960 to its end, so the learning "
    "rate fell over the last hundred steps",
)


def draw_test_set(work: Path) -> None:
    """Draw ``assets/test.jsonl`` and its pictures from the test split."""
    sources = Sources(work)
    ASSETS.mkdir(exist_ok=True)
    lines = []
    for task in TASKS:
        for index in range(PICTURES_PER_TASK):
            sample = tasks.sample(sources, random.Random(f"test/{task}/{index}"), "test", task)
            name = f"{task}_{index}.jpg"
            sample.picture.save(ASSETS / name, quality=_QUALITY, optimize=True)
            turns = [
                {"question": turn.question, "answer": turn.answer, "facts": list(turn.facts)} for turn in sample.turns
            ]
            lines.append(
                json.dumps(
                    {"id": f"{task}/{index}", "task": task, "picture": name, "chain": sample.chain, "turns": turns}
                )
            )
    (ASSETS / "test.jsonl").write_text("\n".join(lines) + "\n")


def export_part(work: Path) -> None:
    """Write the part, the curves and the provenance."""
    parts.save(load_state(work / "words.pt")["mean"])
    stages: dict[str, Any] = {}
    for stage in ("sight", "words"):
        rows = tidy_curve(work / f"{stage}.csv", parts.FOLDER / f"curve_{stage}.csv")
        stages[stage] = {"steps": int(rows[-1]["step"]), "wall_minutes": minutes(rows), "last_row": rows[-1]}
    index = (work / "sprites" / "index.json").read_bytes()
    provenance = {
        "data_version": tasks.DATA_VERSION,
        "language_model": {"package": PACKAGE, "gguf_sha256": GGUF_SHA256},
        "tower": {"package": parts.ONNX_PACKAGE, "onnx_sha256": parts.ONNX_SHA256},
        "pictures": {
            "debian": DEBIAN,
            "pypi": PYPI,
            "sprites": len(json.loads(index)),
            "index_sha256": hashlib.sha256(index).hexdigest(),
        },
        "stages": stages,
        "history": HISTORY,
        "machine": {"processor": processor(), "note": "shared with other work; wall times are upper bounds"},
        "versions": {
            name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
        },
        "part_sha256": hashlib.sha256(parts.PATH.read_bytes()).hexdigest(),
    }
    (parts.FOLDER / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--test-set", action="store_true", help="draw the test pictures and nothing else")
    args = parser.parse_args()
    if args.test_set:
        draw_test_set(args.work)
    else:
        export_part(args.work)


if __name__ == "__main__":
    main()
