"""The unrolled head against a head that drafts one token after the other with a cache, as serving does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.made import HIDDEN, TableTarget, head, lesson, marks
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.train import unroll as module
from vllm_specvlm.train.unroll import unroll
from vllm_specvlm.train.views import View, view

STEPS = 5
TEXTS = [("..PPPPPPP..aaaaaaaaa", [(2, 7)]), ("...aaaa.....QQQQ.aaaaaa..", [(12, 4)]), (".aaaa", [])]

Cached = list[tuple[torch.Tensor, torch.Tensor]]


def attend_to(cached: Cached, own: Cached) -> Any:
    """Attention of one slot [1, heads, D] to the cached keys and its own, which is left in `own`."""

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        own.append((keys[0], values[0]))
        groups = queries.shape[1] // keys.shape[1]
        all_keys = torch.stack([*(key for key, _ in cached), keys[0]]).repeat_interleave(groups, 1)
        all_values = torch.stack([*(value for _, value in cached), values[0]]).repeat_interleave(groups, 1)
        scores = torch.einsum("hd,khd->hk", queries[0], all_keys) * queries.shape[-1] ** -0.5
        return torch.einsum("hk,khd->hd", scores.softmax(-1), all_values)[None]

    return attend


def one(network: FeatureHead, seen: View, row: int, column: int, state: torch.Tensor, cached: Cached) -> Any:
    """One slot through the head: output and its own key and value."""
    own: Cached = []
    slots = seen.slots
    is_visual = slots.is_visual[row, column : column + 1]
    before = int(slots.is_visual[:row].sum() + slots.is_visual[row, :column].sum())
    visual = seen.visual[before : before + 1] if seen.visual is not None and bool(is_visual) else None
    output = network(
        state[None],
        seen.embeddings[row, column : column + 1],
        slots.numbers[row, column : column + 1],
        attend_to(cached, own),
        visual,
        is_visual if visual is not None else None,
    )
    return output[0], own[0]


def drafts(network: FeatureHead, seen: View, row: int) -> dict[tuple[int, int], torch.Tensor]:
    """By drafted place and step: what drafting gives there, when the draft began that many slots before."""
    slots = seen.slots
    states = network.state(slots.features[row])
    columns = [
        column
        for column, depth in zip(slots.drafted[row].tolist(), slots.depths[row].tolist(), strict=True)
        if depth >= 0
    ]
    confirmed: Cached = []
    roots: dict[int, torch.Tensor] = {}
    for column in range(columns[-1] + 1):
        roots[column], own = one(network, seen, row, column, states[column], confirmed)
        confirmed.append(own)
    found = {}
    for place, column in enumerate(columns):
        cached, state = list(confirmed[: column + 1]), roots[column]
        found[place, 0] = state
        for step in range(1, STEPS):
            if place + step >= len(columns) or columns[place + step] != column + step:
                break  # the answer is over
            state, own = one(network, seen, row, column + step, state, cached)
            cached.append(own)
            found[place + step, step] = state
    return found


def outputs_of(kind: str, **changes: Any) -> tuple[FeatureHead, View, list[torch.Tensor]]:
    target = TableTarget()
    network = head(kind, **changes).eval()
    texts = [
        lesson(seed, marks(text), pictures, target, network.config.features)
        for seed, (text, pictures) in enumerate(TEXTS)
    ]
    seen = view(network, target, texts)  # type: ignore[arg-type]
    return network, seen, unroll(network, seen.slots, seen.embeddings, seen.visual, STEPS)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("pool", {}),
        ("text", {"input_norm": False, "layer_norm": False, "fusion_bias": True, "attention_bias": True}),
        ("global", {"num_key_value_heads": 4}),
        ("none", {"fusion": "wide", "feature_layers": (0, 1, 2)}),
    ],
)
@torch.no_grad()
def test_a_step_is_what_drafting_gives(kind: str, changes: dict[str, Any]) -> None:
    network, seen, outputs = outputs_of(kind, **changes)
    compared = 0
    for row in range(len(TEXTS)):
        for (place, step), wanted in drafts(network, seen, row).items():
            torch.testing.assert_close(outputs[step][row, place], wanted, atol=2e-5, rtol=2e-5)
            compared += 1
    deep = sum(int((seen.slots.depths >= step).sum()) for step in range(STEPS))
    assert compared == deep > 40


@pytest.mark.parametrize("fault", ["no diagonal", "one key too many", "diagonal not moved"])
@torch.no_grad()
def test_wrong_attention_would_be_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._attend_draft

    def wrong(slots: Any, cache: Any, kept: Any, step: int) -> Any:
        if fault == "no diagonal":
            return right(slots, cache, [], step)
        if fault == "one key too many":
            return right(replace(slots, drafted=slots.drafted + 1), cache, kept, step)
        return right(slots, cache, kept, step)

    if fault == "diagonal not moved":
        moved = module._later
        monkeypatch.setattr(module, "_later", lambda rows, by: moved(rows, by) if rows.dim() == 3 else rows)
    monkeypatch.setattr(module, "_attend_draft", wrong)
    network, seen, outputs = outputs_of("pool")
    wanted = drafts(network, seen, 0)
    worst = max(float((outputs[step][0, place] - value).abs().max()) for (place, step), value in wanted.items())
    assert worst > 1e-3


def test_every_step_reaches_every_parameter() -> None:
    network, _, outputs = outputs_of("resampler")
    outputs[-1].square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(silent) <= {"lm_head.weight", "norm_output.weight"}
    assert outputs[0].shape[-1] == HIDDEN


class Described:
    """`xformers.ops` as its documentation has it, for where there is no CUDA: [batch, length, heads, channels]."""

    class LowerTriangularMask:
        pass

    @staticmethod
    def memory_efficient_attention(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attn_bias: object
    ) -> torch.Tensor:
        assert isinstance(attn_bias, Described.LowerTriangularMask)
        assert queries.shape == keys.shape == values.shape and queries.dtype == keys.dtype == values.dtype
        scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) * queries.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(later, float("-inf")).softmax(-1), values)


@torch.no_grad()
def test_xformers_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layout, its mask and a key for every query head. That it runs on CUDA, this cannot show."""
    _, _, wanted = outputs_of("pool", num_key_value_heads=2)
    monkeypatch.setattr(module, "xops", Described)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    _, seen, found = outputs_of("pool", num_key_value_heads=2)
    present = seen.slots.depths >= 0
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine[present], theirs[present], atol=2e-5, rtol=2e-5)
