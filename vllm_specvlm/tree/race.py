"""Drawing tokens from their laws by an exponential race, which a drafter can foresee."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_specvlm.tree.noise import exponentials

NO_LAW = -1
"""The winner where the probabilities are none: NaN, infinite or all 0."""
_CHUNK_ELEMENTS = 1 << 20
_GPU_CHUNK_ELEMENTS = 1 << 24


def race(probs: Tensor, keys: Tensor) -> Tensor:
    """The winner of each row's race: float32 [n, V] and int64 [n] (`noise.position_keys`) give int64 [n].

    Token t arrives at time E_t / p_t, with the exponential variables E of the row's key; the first to arrive wins. So
    token t wins with probability p_t / sum p: the Gumbel-max trick, argmax(log p + Gumbel), with Gumbel = -log E. Rows
    need no normalising. How rare a token may be is said at `noise.exponentials`.

    Rows of one key are coupled: laws p and q, run with the same key, have the same winner with probability at least
    (1 - TV(p, q)) / (1 + TV(p, q)) (Daliri, Musco, Suresh 2024, "Coupling without Communication and Drafter-Invariant
    Speculative Decoding"), and always if p = q. That is what a drafter gains that ranks its candidates with the same
    noise; which law it has does not matter to this one.

    A token of probability 0 never wins. Each row depends on its own law and key only. Temporary memory is bounded (five
    times 4 MiB, or five rows; on other devices than the CPU five times 64 MiB) by working on some rows at a time; rows
    of one key are worked on together, since they share their noise. A row without positive, finite mass gives `NO_LAW`.
    """
    count, vocabulary = probs.shape
    winners = torch.empty(count, dtype=torch.int64, device=probs.device)
    if not count:
        return winners
    tokens = torch.arange(vocabulary, device=probs.device)
    on_cpu = probs.device.type == "cpu"
    chunk = _CHUNK_ELEMENTS if on_cpu else _GPU_CHUNK_ELEMENTS
    for rows in keys.argsort().split(max(1, chunk // vocabulary)):
        speed, winner = (probs[rows] / _noise(keys[rows], tokens, share=on_cpu)).max(dim=1)
        winners[rows] = torch.where((speed > 0) & speed.isfinite(), winner, NO_LAW)
    return winners


def _noise(keys: Tensor, tokens: Tensor, *, share: bool) -> Tensor:
    """float32 [n, V]. With `share` rows of one key have theirs made once; on a GPU the CPU would wait to count them."""
    if not share:
        return exponentials(keys, tokens)
    distinct, key_of_row = torch.unique(keys, return_inverse=True)
    return exponentials(distinct, tokens)[key_of_row]
