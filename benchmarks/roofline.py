"""What the GPU kernels can at best do, computed from their machine code.

    python benchmarks/roofline.py > docs/roofline.md

Bytes come from the shapes, instructions, registers and shared memory from tests/kernels/machine_code.csv, the cut into
blocks from the same rules as csrc/gpu. Nothing here was measured.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from math import ceil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "tests" / "kernels" / "machine_code.csv"

ROWS, KEYS, GROUP, CUT, LEAST_GROUPS, MOST_SPLITS = 64, 64, 16, 4, 8, 16  # as in csrc/gpu, for head size 128
THREADS, SCHEDULERS = 128, 4


@dataclass(frozen=True)
class Gpu:
    """Published figures, and `product`: cycles of a scheduler for one mma.sync.m16n8k16.

    On Hopper and Blackwell mma.sync does not reach the published rate, which is that of wgmma and tcgen05; half of
    Hopper's and a quarter of Blackwell's is assumed, which is the same number of cycles as on Ampere.
    """

    name: str
    architecture: str
    processors: int
    clock: float
    bandwidth: float
    shared: int
    product: int = 8


GPUS = [
    Gpu("A100 80GB", "sm_80", 108, 1.41e9, 2.04e12, 164 * 1024),
    Gpu("H100 SXM", "sm_90", 132, 1.75e9, 3.35e12, 228 * 1024),
    Gpu("B200", "sm_100", 148, 1.85e9, 8.0e12, 228 * 1024),
]


@dataclass(frozen=True)
class Model:
    """Language layers of a model in bfloat16."""

    name: str
    layers: int
    query_heads: int
    heads: int
    weights: float
    head_size: int = 128


MODELS = [
    Model("Qwen2.5-VL-7B", 28, 28, 4, 15.2e9),
    Model("LLaVA-1.5-7B", 32, 32, 32, 13.5e9),
    Model("LLaVA-1.5-13B", 40, 40, 40, 26.0e9),
]
CASES = [(batch, context, nodes) for context in (1000, 8000) for nodes in (16, 64) for batch in (1, 8, 32)]


@dataclass(frozen=True)
class Bound:
    """Seconds of the attention of a whole verify step, by what bounds it, and what the weights take."""

    memory: float
    issue: float
    products: float
    weights: float
    pieces: int
    resident: int

    @property
    def kernel(self) -> float:
        return max(self.memory, self.issue, self.products)

    @property
    def bound_by(self) -> str:
        return max(("memory", self.memory), ("issue", self.issue), ("products", self.products), key=lambda b: b[1])[0]


def code_of(architecture: str, head_size: int) -> dict[str, int]:
    """The table's row of the bfloat16 kernel."""
    with CODE.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["kernel"] == f"attend_mma bfloat16 {head_size}" and row["architecture"] == architecture:
                return {key: int(value) for key, value in row.items() if key not in ("kernel", "architecture")}
    raise SystemExit(f"{CODE} has no kernel for head size {head_size} on {architecture}; make the table again.")


def resident_blocks(gpu: Gpu, registers: int, shared: int) -> int:
    """Blocks of 128 threads that a processor holds at once; registers are given out in units of 256 a warp.

    A block's shared memory has 1 KiB more for the system, which cuobjdump counts from sm_90 on.
    """
    by_registers = 65536 // (ceil(registers * 32 / 256) * 256 * THREADS // 32)
    return min(by_registers, gpu.shared // (shared + (1024 if gpu.architecture == "sm_80" else 0)))


def bound(gpu: Gpu, model: Model, batch: int, context: int, nodes: int) -> Bound:
    """The tree's nodes and its root are the rows; keys are the context, the root and the nodes."""
    code = code_of(gpu.architecture, model.head_size)
    rows, group, element = nodes + 1, model.query_heads // model.heads, 2
    tiles = ceil(rows * group / ROWS)
    filled = max(batch, batch * rows * group // ROWS) * model.heads
    splits = min(MOST_SPLITS, ceil(2 * gpu.processors / filled))
    groups = ceil((context + 1) / GROUP)
    most = min(splits, ceil(groups / LEAST_GROUPS))
    per_piece = ceil(ceil(groups / most) / CUT) * CUT
    pieces = ceil(groups / per_piece)
    steps = ceil(per_piece / (KEYS // GROUP))  # of every block but the last piece's, which has the dense rows as well
    dense_steps = ceil(nodes / KEYS)

    states = batch * (2 * (context + rows) * model.heads + 2 * rows * model.query_heads) * model.head_size * element
    partials = 2 * pieces * batch * rows * model.query_heads * (model.head_size + 1) * 4 if pieces > 1 else 0
    memory = (states + partials) / gpu.bandwidth

    resident = resident_blocks(gpu, code["registers"], 4 * KEYS * (model.head_size + 8) * element + code["shared"])
    blocks = batch * tiles * model.heads * pieces
    # The busiest processor's blocks; a scheduler has one warp of each, and a warp alone issues every second cycle.
    per_processor = ceil(blocks / gpu.processors)
    last = ceil(batch * tiles * model.heads / gpu.processors)
    all_steps = per_processor * steps + last * dense_steps
    instructions = all_steps * code["step"] + per_processor * code["around"]
    rate = min(1.0, 0.5 * min(per_processor, resident))
    issue = instructions / rate / gpu.clock
    products = all_steps * code["products"] * gpu.product / gpu.clock
    whole = model.layers
    return Bound(memory * whole, issue * whole, products * whole, model.weights / gpu.bandwidth, pieces, resident)


def table(gpu: Gpu) -> str:
    """One GPU's table."""
    lines = [
        "| model | context | nodes | batch | pieces | memory | issue | products | kernel / weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for batch, context, nodes in CASES:
            b = bound(gpu, model, batch, context, nodes)
            times = {"memory": b.memory, "issue": b.issue, "products": b.products}
            cells = [f"**{t * 1e6:.0f}**" if name == b.bound_by else f"{t * 1e6:.0f}" for name, t in times.items()]
            lines.append(
                f"| {model.name} | {context} | {nodes} | {batch} | {b.pieces} | {' | '.join(cells)} "
                f"| {b.kernel / b.weights:.1%} |"
            )
    return "\n".join(lines)


def share(model: Model, batch: int, context: int) -> float:
    """Bytes of the paged cache against bytes of the weights."""
    return batch * context * 4 * model.heads * model.head_size * model.layers / model.weights


def reached(batch: int, context: int, most: float) -> str:
    """How near a goal is on paper, as a sentence."""
    found = []
    for gpu in GPUS:
        for model in MODELS:
            for nodes in (16, 64):
                b = bound(gpu, model, batch, context, nodes)
                found.append((b.kernel / b.weights, f"{model.name} with {nodes} nodes on {gpu.name}"))
    hit = sum(share <= most for share, _ in found)
    low, high = min(found), max(found)
    return (
        f"Goal: at most {most:.0%} of the weights' time at batch {batch}, context {context}. Reached by {hit} of the "
        f"{len(found)} cases;\n  they lie between {low[0]:.1%} ({low[1]}) and {high[0]:.1%} ({high[1]})."
    )


def deciding() -> str:
    """How often each of the three bounds is the greatest, by model."""
    parts = []
    for model in MODELS:
        count = Counter(bound(gpu, model, *case).bound_by for gpu in GPUS for case in CASES)
        parts.append(f"{model.name} " + ", ".join(f"{name} {count[name]}" for name in ("memory", "issue", "products")))
    return ";\n  ".join(parts)


def page() -> str:
    """The whole page."""
    resident = ", ".join(f"{bound(g, MODELS[0], 1, 1000, 16).resident} on {g.name}" for g in GPUS)
    registers = ", ".join(f"{code_of(g.architecture, 128)['registers']} on {g.architecture}" for g in GPUS)
    shares = ", ".join(f"{m.name} {share(m, 8, 8000):.0%}" for m in MODELS)
    sections = "\n\n".join(f"## {gpu.name}\n\n{table(gpu)}" for gpu in GPUS)
    return f"""# Roofline of the GPU kernels

**Computed, not measured**: the kernels are compiled, emulated, sanitised and statically checked, and have not been run
on a GPU by the project. This page is the output of `python benchmarks/roofline.py`; a test keeps it so.

The tables give, in microseconds, three lower bounds on tree attention in all layers of one verify step, in bfloat16,
without the gaps between kernels:

* **memory**: keys, values, queries and outputs once, and the float32 parts of requests that are cut into pieces written
  and read once, all at the published bandwidth (the parts usually stay in the second-level cache, so this is too much);
* **issue**: instructions of the busiest processor's warps, one a cycle and scheduler, or one in two cycles where a
  scheduler has a single warp: those of an ordinary step, times the steps, and for each block those before and after
  (found by searching the machine code for the shortest way that does all the work);
* **products**: the matrix instructions alone, at 8 cycles each and scheduler (the full rate of an A100, half of an
  H100's, a quarter of a B200's: `mma.sync` does not reach what newer instructions do there).

The greatest one is in bold, and *kernel / weights* compares it with streaming the model's weights once, which is what
verifying a tree costs anyway at small batches. What this leaves out: latencies, the second-level cache's bandwidth
(every 64 rows of a request read its keys again, from there), and the start of each kernel. A layer starts two kernels,
three where a request is cut into pieces; at two microseconds each that is 28 x 3 x 2 = 168 for Qwen2.5-VL-7B, more than
most entries for batch 1. CUDA graphs hide a part of it.

Machine code: nvcc {release()}; registers of a thread: {registers};
blocks that a processor holds: {resident}.

## What follows

* {reached(1, 1000, 0.01)}
* {reached(8, 8000, 0.05)}
* The second goal is out of reach of any kernel that reads the cache in 16 bits: at batch 8 and context 8000 the paged
  keys and values alone are, against the weights' bytes:
  {shares}.
  A cache of 8 bits would halve that; it is refused so far.
* At batch 1 and context 1000 a block has two steps, so what stands around them decides: finding the request, the first
  loads, the parts of the pieces.
* What decides, in how many of each model's {len(GPUS) * len(CASES)} cases: {deciding()}.
  Where products do, `wgmma` on Hopper and `tcgen05` on Blackwell would help; where memory does, only fewer bytes.

{sections}
"""


def release() -> str:
    """Of the compiler, as the table's maker says."""
    text = (ROOT / "tests" / "kernels" / "machine_code.py").read_text()
    return text.split('RELEASE = "')[1].split('"')[0]


if __name__ == "__main__":
    print(page(), end="")
