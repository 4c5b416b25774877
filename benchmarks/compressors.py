"""One trained head, behind each compressor in turn: what fewer visual tokens cost and save.

Writes a recipe per compressor that goes on from the head `--start` for some steps, runs `specvlm train` on each, and
prints the command that measures them side by side. Every head goes on for as many steps, that of the head's own
compressor too. A run that is done is left alone, one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RECIPE = """# Written by benchmarks/compressors.py: {name}
target = "{target}"
seed = 20261124

[[data]]
source = "specvlm/scenes"
images = "{images}"
weight = 1.0

[answers]
own = 0.7
sampled = 0.15
longest = 96
batch = 32

[head]
start = "{start}"
compressor = {compressor}

[losses]
ce = 1.0
smooth_l1 = 0.1
step_decay = 0.9
gate_cost = 0.02

[training]
steps = {steps}
batch = 16
lr = 5e-4
warmup = 20
unroll = 4
pool = 256
visits = 4
save_every = {steps}
keep = 1

[check]
every = {steps}
conversations = 48
"""

COMPRESSORS = {
    "none": '{ kind = "none" }',
    "pool-4": '{ kind = "pool", ratio = 4 }',
    "pool-9": '{ kind = "pool", ratio = 9 }',
    "pool-10": '{ kind = "pool", ratio = 10 }',
    "pool-36": '{ kind = "pool", ratio = 36 }',
    "prune-10": '{ kind = "prune", ratio = 10 }',
    "conv-3": '{ kind = "conv", ratio = 3 }',
    "resampler-14": '{ kind = "resampler", queries = 14 }',
    "global-2": '{ kind = "global", queries = 2 }',
    "select": '{ kind = "select", branches = [{ kind = "pool", ratio = 9 }, { kind = "prune", ratio = 20 }, '
    '{ kind = "resampler", queries = 2 }, { kind = "text" }] }',
    "weight-9": '{ kind = "weight", ratio = 9, branches = [{ kind = "prune", ratio = 9 }, '
    '{ kind = "pool", ratio = 9 }] }',
    "concat-16": '{ kind = "concat", branches = [{ kind = "pool", ratio = 18 }, { kind = "prune", ratio = 24 }, '
    '{ kind = "resampler", queries = 2 }] }',
    "text": '{ kind = "text" }',
}
"""By name: 14 queries are a tenth of 144 tokens; `global` is ViSpec's, one token and a vector; `concat-16` joins 8
pooled tokens, 6 kept ones and 2 queries; `text` sees nothing."""


def train(name: str, arguments: argparse.Namespace) -> Path:
    """The folder of the trained head."""
    out: Path = arguments.out / name
    done = out / f"step-{arguments.steps:06}"
    if not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        recipe = out.with_suffix(".toml")
        recipe.write_text(
            RECIPE.format(
                name=name,
                target=arguments.target,
                images=arguments.images.resolve(),
                start=arguments.start.resolve(),
                compressor=COMPRESSORS[name],
                steps=arguments.steps,
            )
        )
        command = [sys.executable, "-m", "vllm_specvlm.cli", "train", str(recipe), "--out", str(out)]
        subprocess.run([*command, "--resume"] if any(out.glob("step-*")) else command, check=True)
    return done


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="specvlm/scenes-target")
    parser.add_argument("--start", type=Path, required=True, metavar="DIR", help="a trained head of the target")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the pictures (docs/scenes.md)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--only", nargs="+", choices=sorted(COMPRESSORS), default=list(COMPRESSORS))
    arguments = parser.parse_args()
    heads = [str(train(name, arguments)) for name in arguments.only]
    print(f"python benchmarks/drafters.py --target {arguments.target} --nodes 16 --pictures right --drafts", *heads)


if __name__ == "__main__":
    main()
