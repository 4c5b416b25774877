"""A converted head beside the reference: a prompt's slots, then drafts that feed on their own outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.convert.checkpoints import VOCABULARY
from vllm_specvlm.draft.feature_head import Attend, FeatureHead

SLOTS, DRAFTS = 9, 3
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""State [n, hidden], tokens [n], positions [n] to the next states [n, hidden]."""


def caching() -> Attend:
    """Causal attention over all slots of this and earlier calls."""
    kept: list[Tensor] = []

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        pair = torch.stack((keys, values))
        kept.append(pair)
        all_keys, all_values = torch.cat(kept, dim=1)
        n, total = len(queries), len(all_keys)
        visible = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        q, k, v = (x.transpose(0, 1) for x in (queries, all_keys, all_values))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True).transpose(0, 1)

    return attend


def of_head(head: FeatureHead, embedding: Tensor) -> Step:
    """A converted head as a step; `embedding` is the target's table."""
    attend = caching()
    table = head.embed_tokens.weight if head.config.own_embedding else embedding

    def step(state: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return head(state, F.embedding(tokens, table), positions, attend)

    return step


@torch.no_grad()
def play(step: Step, state: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits [SLOTS + DRAFTS, n]: of a prompt's slots, with the target's features, and of drafts on their own states.

    Every run drafts the same tokens, so that a difference of logits does not become one of tokens.
    """
    tokens = torch.randint(VOCABULARY, (SLOTS + DRAFTS,), generator=torch.Generator().manual_seed(5))
    out = step(state, tokens[:SLOTS], torch.arange(SLOTS))
    all_logits = [logits(out)]
    for slot in range(SLOTS, SLOTS + DRAFTS):
        out = step(out[-1:], tokens[slot : slot + 1], torch.tensor([slot]))
        all_logits.append(logits(out))
    return torch.cat(all_logits)


def features(width: int) -> Tensor:
    """A target's features [SLOTS, width]."""
    return torch.randn(SLOTS, width, generator=torch.Generator().manual_seed(6)) * 2


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.3, "logits that do not move show nothing"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def assert_different(got: Tensor, other: Tensor) -> None:
    assert (got - other).abs().amax(dim=1).min() > 0.05, "the control agrees in some slot"
