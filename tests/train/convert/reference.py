"""The published heads' formulas, written down once more: slots of one text, one list of keys and values.

Nothing here is the plugin's: rotary positions turn complex numbers, and attention goes head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.train.convert.checkpoints import HEAD_DIM, HEADS, KV_HEADS, LLAMA

EPS, THETA = float(LLAMA["rms_norm_eps"]), float(LLAMA["rope_theta"])  # type: ignore[arg-type]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()


def turn(head: Tensor, positions: Tensor) -> Tensor:
    """Component i and component i + d/2 are one complex number, turned by position * theta^(-2i/d)."""
    half = HEAD_DIM // 2
    angles = positions.double()[:, None] * THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    number = torch.complex(head[:, :half].double(), head[:, half:].double())
    turned = number * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=1).to(head.dtype)


Pictures = Sequence[tuple[int, int, Tensor]]
"""Placeholders [start, stop) of each picture, and its visual tokens as the target's language model reads them."""


@dataclass
class Reference:
    """A head with a cache. `swapped`, joined in the other order, is for a control."""

    weights: dict[str, Tensor]
    prefix: str
    norm_before_residual: bool = False
    swapped: bool = False
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def linear(self, name: str, x: Tensor) -> Tensor:
        result = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return result if bias is None else result + bias

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((second, first) if self.swapped else (first, second), dim=1)

    def attention(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (self.linear(f"{self.prefix}.self_attn.{name}_proj", x) for name in "qkv")
        first = len(self.keys)
        self.keys += list(torch.cat([turn(head, positions) for head in k.split(HEAD_DIM, dim=1)], dim=1))
        self.values += list(v)
        answers = []
        for number, head in enumerate(q.split(HEAD_DIM, dim=1)):
            shared = slice(number // (HEADS // KV_HEADS) * HEAD_DIM, (number // (HEADS // KV_HEADS) + 1) * HEAD_DIM)
            turned = turn(head, positions)
            rows = []
            for row in range(len(x)):
                seen = first + row + 1
                keys = torch.stack(self.keys[:seen])[:, shared]
                values = torch.stack(self.values[:seen])[:, shared]
                rows.append(torch.softmax(keys @ turned[row] / HEAD_DIM**0.5, dim=0) @ values)
            answers.append(torch.stack(rows))
        return self.linear(f"{self.prefix}.self_attn.o_proj", torch.cat(answers, dim=1))

    def mlp(self, x: Tensor) -> Tensor:
        normed = rms(x, self.weights[f"{self.prefix}.post_attention_layernorm.weight"])
        gate, up = (self.linear(f"{self.prefix}.mlp.{name}_proj", normed) for name in ("gate", "up"))
        return self.linear(f"{self.prefix}.mlp.down_proj", gate * torch.sigmoid(gate) * up)

    def eagle1(self, state: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """fc(cat(embedding, feature)), then a layer that does not normalise its input."""
        return self.layer(self.linear("fc", self.join(self.weights["embed_tokens.weight"][tokens], state)), positions)

    def layer(self, x: Tensor, positions: Tensor) -> Tensor:
        """What follows `fc`."""
        x = x + self.attention(x, positions)
        return x + self.mlp(x)

    def eagle3(self, state: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """A layer whose attention reads cat(norm(embedding), norm(state))."""
        embedding = self.weights["embed_tokens.weight"][tokens]
        embedding = rms(embedding, self.weights[f"{self.prefix}.input_layernorm.weight"])
        normed = rms(state, self.weights[f"{self.prefix}.hidden_norm.weight"])
        residual = normed if self.norm_before_residual else state
        x = residual + self.attention(self.join(embedding, normed), positions)
        return x + self.mlp(x)

    def vispec(self, state: Tensor, tokens: Tensor, positions: Tensor, vector: Tensor) -> Tensor:
        """EAGLE-1 behind img_fc(cat(feature, vector of the last picture))."""
        return self.eagle1(self.linear("img_fc", torch.cat((state, vector.expand_as(state)), dim=1)), tokens, positions)

    def image_adaptor(self, visual: Tensor) -> Tensor:
        """[queries, hidden]: what ViSpec's queries read in a picture's tokens [n, hidden]."""
        keys, values = (self.linear(f"imadpt.{name}_proj", visual) for name in "kv")
        answers = []
        for query in self.weights["imadpt.q"]:
            size = query.shape[1]
            heads = [
                torch.softmax(keys[:, i * size : (i + 1) * size] @ head / size**0.5, dim=0)
                @ values[:, i * size : (i + 1) * size]
                for i, head in enumerate(query)
            ]
            answers.append(torch.cat(heads))
        return self.linear("imadpt.o_proj", torch.stack(answers))

    def vispec_prompt(self, state: Tensor, tokens: Tensor, pictures: Pictures) -> tuple[dict[int, Tensor], Tensor]:
        """A prompt in one pass, the first of this cache.

        Args:
            state: [n, hidden]: the target's features.
            tokens: int64 [n + 1]; at placeholders anything.
            pictures: ascending.

        Returns:
            What the head says at each text slot, [hidden], and the vector of the last picture.
        """
        vector = torch.zeros(state.shape[1])
        rows: list[Tensor] = []
        positions: list[int] = []
        text: dict[int, int] = {}
        for slot in range(len(state)):
            picture = next((each for each in pictures if each[0] <= slot + 1 < each[1]), None)
            if picture is None:
                embedding = self.weights["embed_tokens.weight"][tokens[slot + 1]]
                joined = self.linear("img_fc", torch.cat((state[slot], vector))[None])
                text[slot] = len(rows)
                rows.append(self.linear("fc", torch.cat((embedding[None], joined), dim=1))[0])
                positions.append(slot)
            elif slot + 2 == picture[1]:
                *left, vector = self.image_adaptor(picture[2])
                rows += left
                positions += range(slot + 1 - len(left), slot + 1)
        said = self.layer(torch.stack(rows), torch.tensor(positions))
        return {slot: said[row] for slot, row in text.items()}, vector
