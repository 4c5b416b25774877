"""Are the answers of a speculative engine on this machine those of plain vLLM?"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vllm_specvlm.selftest.answering import Answers, Request
from vllm_specvlm.selftest.check import Check

# Log-probabilities that two tokens may differ by where rounding decides: a step of the logits' own type at their usual
# size (8 to 32), or the noise of float32.
TIES = {"float32": 1e-3, "bfloat16": 0.26, "float16": 0.04}


def run(request: Request, verbose: bool) -> Answers:
    """The answers of an engine in a process of its own. Raises RuntimeError, with its last words, if that fails."""
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not verbose:
        environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="specvlm-selftest-") as folder:
        asked, answered, words = (Path(folder) / name for name in ("request.json", "result.json", "words.txt"))
        asked.write_text(json.dumps(dataclasses.asdict(request)))
        with words.open("w") as said:
            done = subprocess.run(
                [sys.executable, "-m", "vllm_specvlm.selftest.answering", str(asked), str(answered)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if verbose else said,
                stderr=None if verbose else said,
                check=False,
            )
        if done.returncode:
            last = words.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise RuntimeError(f"the engine failed: {last[0]}")
        return Answers(**json.loads(answered.read_text()))


def gaps(plain: Answers, ours: Answers) -> list[float]:
    """For each answer that differs, how far apart the two tokens are under plain decoding where it first does."""
    found = []
    for one, other, likely in zip(plain.tokens, ours.tokens, plain.likely, strict=True):
        if one == other:
            continue
        at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if at is None:
            found.append(float("inf"))  # one of them stops earlier
            continue
        known = likely[at]
        mine = known.get(str(other[at]), -float("inf"))
        found.append(abs(known[str(one[at])] - mine))
    return found


def judge(name: str, dtype: str, plain: Answers, ours: Answers) -> Check:
    """Whether the answers are the same, ties aside, and whether anything was speculated at all."""
    different = gaps(plain, ours)
    worst = max(different, default=0.0)
    detail = f"{len(different)} of {len(plain.tokens)} answers differ"
    if different:
        detail += f", at tokens up to {worst:.3f} apart (a tie in {dtype}: {TIES[dtype]})"
    detail += f"; {ours.trees} trees, {ours.accepted} drafted tokens accepted; tree rows by {', '.join(ours.ways)}"
    idle = not ours.accepted or ours.failures > 0
    if idle:
        detail += "; the drafter failed" if ours.failures else "; nothing was accepted, so nothing was shown"
    return Check.judged(
        name,
        worst <= TIES[dtype] and not idle,
        detail,
        answers=len(plain.tokens),
        different=len(different),
        gaps=sorted(round(gap, 4) for gap in different if gap != float("inf")),
        accepted=ours.accepted,
        ways=ours.ways,
    )


def check(target: str, draft: str, dtype: str, *, eager_only: bool, quick: bool, verbose: bool) -> Iterable[Check]:
    """Answers of plain vLLM, of a draft VLM's trees and of the lookup drafter's.

    `eager_only`: leave the run with compiled models and CUDA graphs out.
    """
    methods = {"draft VLM": {"model": draft}, "lookup": {}}
    for eager in (True,) if eager_only else (True, False):
        mode = "eager" if eager else "compiled, with graphs"
        base = Request(target, dtype, eager, questions=2 if quick else 8, max_tokens=24 if quick else 96)
        plain = run(base, verbose)
        for name, options in list(methods.items())[: 1 if quick else None]:
            # Without the planner, which might find that speculation does not pay here.
            speculative = {"method": "specvlm", "planner": False, "num_speculative_tokens": 16, **options}
            ours = run(dataclasses.replace(base, speculative=speculative), verbose)
            yield judge(f"answers with {name}, {dtype}, {mode}", dtype, plain, ours)
