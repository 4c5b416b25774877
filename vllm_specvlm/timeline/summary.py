"""A timeline in a few lines for a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter

from vllm_specvlm.timeline.timeline import Timeline

WIDTH = 96  # characters of a line


def summary(timeline: Timeline) -> str:
    """The answer, and how it came."""
    steps, first = timeline.decoding, timeline.steps[0]
    tokens = len(timeline.answer)
    modes = Counter(step.mode for step in steps)
    kinds = ", ".join(f"{count} {mode}" for mode, count in modes.most_common())
    drafted = sum(len(step.tree) for step in steps)
    accepted = sum(len(step.path) for step in steps)
    text = "".join(timeline.pieces).strip()
    lines = [textwrap.indent(textwrap.fill(text, WIDTH - 2), "  "), ""]
    if steps:
        lines += [
            f"{tokens} tokens in {len(steps) + 1} steps of the target, which plain decoding takes {tokens} for.",
            "",
            f"  {'steps':<10}  {kinds}, and 1 for the prompt",
            f"  {'accepted':<10}  {accepted} of {drafted} drafted tokens;"
            f" acceptance length {timeline.acceptance_length:.2f}, the target's own token counted",
            f"  {'speed':<10}  first token after {first.seconds:.3f} s,"
            f" then {timeline.tokens_per_second:.1f} tokens/s for {timeline.seconds:.3f} s",
            f"  {'time':<10}  {_shares(timeline)}",
        ]
    else:
        lines.append(f"One token, after {first.seconds:.3f} s: nothing to draft.")
    return "\n".join(lines)


def _shares(timeline: Timeline) -> str:
    spent = {
        "drafting": sum(step.draft for step in timeline.decoding),
        "the target's passes": sum(step.verify for step in timeline.decoding),
        "all else": sum(step.other for step in timeline.decoding),
    }
    return ", ".join(f"{seconds / timeline.seconds:.0%} {name}" for name, seconds in spent.items())
