"""The head on its own outputs: EAGLE-3's training-time test (Li et al. 2025, section 3.1), exactly as serving drafts.

Step 0 reads the target's features. Step i puts the output that step i - 1 had one slot before in the feature's place;
embeddings and targets stay. At slot p it sees what a draft of i steps that began at slot p - i sees: the keys of step
0 up to slot p - i (serving's cache of confirmed tokens) and, of each step j from 1 to i, the key at slot p - (i - j)
(the draft's own nodes).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vllm_specvlm.draft.feature_head import Attend, FeatureHead
from vllm_specvlm.train.slots import Slots

try:  # an optional dependency; it only ever runs on CUDA
    from xformers import ops as xops
except ImportError:
    xops = None


def unroll(
    head: FeatureHead,
    slots: Slots,
    embeddings: Tensor,
    visual: Tensor | None,
    steps: int,
    middles: list[Tensor] | None = None,
) -> list[Tensor]:
    """The head's outputs of every step at the slots that are drafted from.

    Args:
        head: the network.
        slots: see `Slots`; on the head's device.
        embeddings: [B, S, H]: of the tokens behind the slots, zeros where there is none.
        visual: [n, H]: compressed visual tokens, in the order of the visual slots; None: there are none.
        steps: 1 or more.
        middles: is given the states in the middle of the layer, `steps` times [B, A, H].

    Returns:
        `steps` times [B, A, H]. Rows of step i whose depth is below i are meaningless.
    """
    cache: list[tuple[Tensor, Tensor]] = []

    def attend_all(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache.append((keys, values))
        return causal(queries, keys, values)

    shown = slots.is_visual if visual is not None and len(visual) else None
    everywhere = head.attended(head.state(slots.features), embeddings, slots.numbers, attend_all, visual, shown)
    columns = slots.drafted[..., None].expand(-1, -1, embeddings.shape[-1])
    # Only attention asks for other slots: behind it those that are drafted from are enough.
    middle = everywhere.gather(1, columns)
    outputs = [head.finished(middle)]
    embedded = embeddings.gather(1, columns)
    numbers = slots.numbers.gather(1, slots.drafted)
    drafts: list[tuple[Tensor, Tensor]] = []
    found = [middle]
    for step in range(1, steps):
        attend = _attend_draft(slots, cache[0], drafts, step)
        found.append(head.attended(_later(outputs[-1], 1), embedded, numbers, attend))
        outputs.append(head.finished(found[-1]))
    if middles is not None:
        middles += found
    return outputs


def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`Attend` over rows [B, S, heads, head_dim], each up to itself; padding on the right is thereby unseen."""
    if xops is not None and queries.is_cuda:
        repeats = queries.shape[2] // keys.shape[2]
        keys, values = keys.repeat_interleave(repeats, 2), values.repeat_interleave(repeats, 2)
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)  # xformers does not heed autocast
        return xops.memory_efficient_attention(queries, keys, values, attn_bias=xops.LowerTriangularMask())
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    return attended.transpose(1, 2)


def _later(rows: Tensor, by: int) -> Tensor:
    """[B, A, ...] with each row's value moved `by` rows on; zeros come in at the front."""
    if by == 0:
        return rows
    return torch.cat([rows.new_zeros(rows.shape[0], by, *rows.shape[2:]), rows[:, :-by]], dim=1)[:, : rows.shape[1]]


def _attend_draft(slots: Slots, cache: tuple[Tensor, Tensor], drafts: list[tuple[Tensor, Tensor]], step: int) -> Attend:
    """`Attend` of one unrolled step; it leaves the step's own keys and values in `drafts`."""

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        drafts.append((keys, values))
        rows, heads, size = queries.shape[1:]
        groups = keys.shape[2]
        # [B, groups, heads of a group * A, D] against [B, groups, S, D]: no copies of keys for the heads of a group.
        grouped = queries.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4) * size**-0.5
        flat = grouped.flatten(2, 3)
        scores = (flat @ cache[0].permute(0, 2, 3, 1)).float().unflatten(2, (heads // groups, rows))
        columns = torch.arange(cache[0].shape[1], device=queries.device)
        unseen = columns > (slots.drafted - step)[..., None]
        scores = scores.masked_fill(unseen[:, None, None], float("-inf"))
        own = [(_later(k, step - 1 - at), _later(v, step - 1 - at)) for at, (k, v) in enumerate(drafts)]
        diagonal = [(grouped * k.transpose(1, 2)[:, :, None]).sum(-1, keepdim=True).float() for k, _ in own]
        weights = torch.cat([scores, *diagonal], dim=-1).softmax(-1).to(values.dtype)
        seen = weights[..., : scores.shape[-1]].flatten(2, 3) @ cache[1].transpose(1, 2)
        total = seen.unflatten(2, (heads // groups, rows))
        for at, (_, v) in enumerate(own):
            total = total + weights[..., scores.shape[-1] + at, None] * v.transpose(1, 2)[:, :, None]
        return total.permute(0, 3, 1, 2, 4).flatten(2, 3)

    return attend
