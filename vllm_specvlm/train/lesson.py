"""One conversation as the target saw it: what a head learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Lesson:
    """Everything on the CPU; T ids, n slots that the head reads, m of them drafted from, P pictures.

    The features of pictures' slots are not here: the drafter never sees them.
    """

    ids: Tensor
    """int64 [T]: placeholders expanded."""
    pictures: list[tuple[int, int]]
    """P placeholder ranges (start, length), ascending."""
    visual: list[Tensor]
    """P times [V, H]: the visual tokens as the target's language model reads them; of a target that shows its tower,
    [V, C] as its projector does."""
    slots: Tensor
    """int64 [n], ascending: the slots outside pictures, up to the last that is drafted from."""
    features: Tensor
    """[n, F]: what `FeatureHead.state` takes, at `slots`; what an early exit takes, a slot later."""
    drafted: Tensor
    """int64 [m]: places in `slots` of those that are drafted from, see `drafted_slots`."""
    depths: Tensor
    """int64 [m]: how many slots of the same answer, drafted from, stand before each."""
    final: Tensor
    """[m, H]: behind the target's final norm at the slot after each drafted one: what the head should predict, and
    what the target's law of the token two after it comes from."""
    normaliser: Tensor
    """float32 [m]: logsumexp of the target's logits there, over its whole vocabulary."""
    best: Tensor
    """int64 [m]: the token that the target likes best there."""
    settled: Tensor | None = None
    """[m, H]: what entered the target's settled layer at the slot after each drafted one (`attention_entropy`)."""
    positions: Tensor | None = None
    """int64 [3, T]: of a target with M-RoPE; None: the ids stand one after the other."""

    @property
    def tokens(self) -> int:
        """Tokens of answers that are learned from."""
        return len(self.drafted)


def drafted_slots(spoken: Tensor) -> tuple[Tensor, Tensor]:
    """Slots that serving drafts from, and the depth of each.

    Slot p predicts token p + 2. Of an answer x_a..x_e the target itself gives the first token, at its prefill; the
    drafter starts at slot a - 1, whose feature is the prompt's last and whose embedding is x_a's, and slot e - 2
    predicts the end. A draft's i-th step at slot p stands on the feature of slot p - i: only if p is i deep or deeper.

    Args:
        spoken: bool [T]: ids that belong to answers.

    Returns:
        int64 [m] slots, ascending, and int64 [m] depths, from 0 in each answer.
    """
    edges = torch.nn.functional.pad(spoken.long(), (1, 1)).diff()
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    stretches = [
        torch.arange(max(0, start - 1), end - 2)
        for start, end in zip(starts, ends, strict=True)
        if end - 2 >= start - 1
    ]
    if not stretches:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return torch.cat(stretches), torch.cat([torch.arange(len(stretch)) for stretch in stretches])
