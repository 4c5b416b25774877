"""The target answering many conversations at a time, with its features on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vllm_specvlm.train.tap import Tap

_ALIVE = 0.75
"""Rows that are over are dropped from the cache when no more than this share is left."""


@dataclass(slots=True)
class Speech:
    """One answer. The prompt's P ids stand without padding before its n tokens in all that follows."""

    answer: list[int]
    """n tokens, the end token included if it came."""
    embeddings: Tensor
    """[P, H]: what the language model read of the prompt."""
    features: Tensor
    """[P + n - 1, F]: see `Tap.features`; the last token was never read."""
    final: Tensor
    """[P + n - 1, H]: behind the final norm."""
    settled: Tensor | None
    """[P + n - 1, H]: see `Tap.settled`."""


class Speaker:
    """Decoding as transformers' `generate` does it, of which it is four times as fast on a CPU: rows that are over do
    not wait for the longest, greedy and sampled ones go together, and the output layer is given contiguous rows."""

    def __init__(self, model: Any, layers: tuple[int, ...], end_ids: Sequence[int], compared: range = range(0)) -> None:
        """A vision-language model; the layers whose inputs are features; the tokens that end an answer; see `Tap`."""
        self._model, self._layers, self._compared = model, layers, compared
        self._ends = torch.tensor(sorted(end_ids), device=model.device)
        self._axes = model.config.model_type.startswith("qwen")

    @torch.inference_mode()
    def speak(self, batch: dict[str, Any], longest: int, temperatures: Tensor, seed: int) -> list[Speech]:
        """Answers to a batch of prompts.

        Args:
            batch: model inputs, padded on the left.
            longest: tokens at which an answer is cut, 1 or more.
            temperatures: float32 [B], on the model's device; 0: greedy.
            seed: of sampling.
        """
        noise = torch.Generator(self._model.device).manual_seed(seed)
        mask: Tensor = batch["attention_mask"]
        lengths = mask.sum(1)
        decoder: nn.Module = self._model.get_decoder()
        with Tap(decoder, self._layers, self._compared) as tap:
            cache, deltas = self._prefill(batch)
            read = Speech([], tap.embeddings[0], tap.features(), tap.final[0], tap.settled())
            count, width = mask.shape
            said = torch.zeros(count, longest, dtype=torch.long, device=mask.device)
            features = read.features.new_zeros(count, longest, read.features.shape[-1])
            final = read.final.new_zeros(count, longest, read.final.shape[-1])
            settled = torch.zeros_like(final) if self._compared else None
            amounts = torch.full((count,), longest, device=mask.device)
            rows = torch.arange(count, device=mask.device)
            state = read.final[:, -1]
            for place in range(longest):
                scores = self._model.get_output_embeddings()(state.contiguous()).float()
                tokens = _draw(scores, temperatures[rows], noise)
                said[rows, place] = tokens
                over = torch.isin(tokens, self._ends) | (amounts[rows] < longest)
                amounts[rows] = torch.where(over, amounts[rows].clamp(max=place + 1), amounts[rows])
                alive = (~over).nonzero().flatten()
                if not len(alive) or place == longest - 1:
                    break
                if len(alive) <= _ALIVE * len(rows):
                    rows, tokens, mask = rows[alive], tokens[alive], mask[alive]
                    cache.batch_select_indices(alive)
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                tap.clear()
                self._model.model(
                    input_ids=tokens[:, None],
                    attention_mask=mask,
                    position_ids=self._positions((lengths[rows] + place)[:, None] + deltas[rows]),
                    past_key_values=cache,
                    use_cache=True,
                )
                features[rows, place], final[rows, place] = tap.features()[:, 0], tap.final[0][:, 0]
                if settled is not None and (found := tap.settled()) is not None:
                    settled[rows, place] = found[:, 0]
                state = tap.final[0][:, 0]
        speeches = []
        for row, (length, amount) in enumerate(zip(lengths.tolist(), amounts.tolist(), strict=True)):
            prompt = slice(width - length, width)
            speeches.append(
                Speech(
                    said[row, :amount].tolist(),
                    read.embeddings[row, prompt],
                    torch.cat([read.features[row, prompt], features[row, : amount - 1]]),
                    torch.cat([read.final[row, prompt], final[row, : amount - 1]]),
                    None
                    if settled is None or read.settled is None
                    else torch.cat([read.settled[row, prompt], settled[row, : amount - 1]]),
                )
            )
        return speeches

    def _prefill(self, batch: dict[str, Any]) -> tuple[Any, Tensor]:
        """The prompts' cache, and by how much positions behind a row's prompt differ from its length: int64 [B, 1]."""
        mask = batch["attention_mask"]
        own = self._axes and "mm_token_type_ids" in batch  # the model lays out pictures along its axes itself
        positions = None if own else self._positions((mask.cumsum(1) - 1).clamp(min=0))
        out = self._model.model(**batch, position_ids=positions, use_cache=True)
        deltas = self._model.model.rope_deltas if own else mask.new_zeros(len(mask), 1)
        return out.past_key_values, deltas.to(mask.device)

    def _positions(self, text: Tensor) -> Tensor:
        """int64 [B, T] positions in the shape that the model takes."""
        return text.expand(3, *text.shape) if self._axes else text


def _draw(scores: Tensor, temperatures: Tensor, noise: torch.Generator) -> Tensor:
    """int64 [B] from logits float32 [B, V]: the best, or at a temperature above 0 a sample (Gumbel's maximum)."""
    sampled = (temperatures > 0).nonzero().flatten()
    if len(sampled):
        waits = torch.empty(len(sampled), scores.shape[1], device=scores.device).exponential_(generator=noise)
        gumbel = -waits.clamp(min=torch.finfo(torch.float32).tiny).log()
        scores[sampled] += temperatures[sampled, None] * gumbel
    return scores.argmax(-1)
