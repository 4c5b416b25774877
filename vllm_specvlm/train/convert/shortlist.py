"""Fewer tokens to draft: an output layer over part of the vocabulary."""

from __future__ import annotations

import torch

from vllm_specvlm.train.convert.parts import Parts
from vllm_specvlm.train.convert.target import Target


def cut(parts: Parts, target: Target | None, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep `count` of the tokens that a head can draft.

    These are the ends of an answer, and otherwise the tokens with the lowest numbers: tokenizers that merge pairs
    number their tokens in the order of merging, the frequent ones first. Verification is not touched; a token that is
    left out is never drafted, and costs a draft where it is due.

    Returns:
        [count, hidden]: the rows of the output layer; int64 [count]: their tokens, ascending.

    Raises:
        ValueError: the head has fewer tokens, or draws on the target's output layer and there is none.
    """
    output, tokens = parts.output, parts.tokens
    if output is None or tokens is None:
        output = None if target is None else target.output()
        if output is None:
            raise ValueError(
                "The head uses its target's output layer, which --vocabulary cuts; give --target, with its weights."
            )
        tokens = torch.arange(len(output))
    if not 0 < count <= len(tokens):
        raise ValueError(f"--vocabulary is {count}, and the head drafts {len(tokens)} tokens; give fewer.")
    ends = torch.isin(tokens, torch.tensor(target.ends() if target is not None else [], dtype=torch.long))
    first_ends_then_low = torch.argsort(tokens + (~ends).long() * (int(tokens.max()) + 1))
    kept = first_ends_then_low[:count]
    kept = kept[torch.argsort(tokens[kept])]
    return output[kept].clone(), tokens[kept]
