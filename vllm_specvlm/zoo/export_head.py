"""Turn a trained checkpoint into a head that ships: ``python -m vllm_specvlm.zoo.export_head CHECKPOINT NAME``.

Writes ``heads/NAME`` in bfloat16, with the run's curves beside its provenance.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from vllm_specvlm.draft import checkpoint_folder, head_checkpoint
from vllm_specvlm.zoo.pair import HEADS

FOLDER = Path(__file__).parent / "heads"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a step-N folder of `specvlm train`")
    parser.add_argument("name", choices=sorted(HEADS.values()))
    arguments = parser.parse_args()
    head, target = head_checkpoint.load(arguments.checkpoint)
    provenance = json.loads((arguments.checkpoint / checkpoint_folder.PROVENANCE).read_text())
    head_checkpoint.save(FOLDER / arguments.name, head.to(torch.bfloat16), target, provenance)
    for curve in ("curve.csv", "curve.png"):
        shutil.copy(arguments.checkpoint.parent / curve, FOLDER / arguments.name / curve)


if __name__ == "__main__":
    main()
