"""What the tower is taught directly: every patch must name what it shows, in the language model's own words.

Two linear heads on the features (thrown away afterwards) name the main and the second word of each patch's mark, and
the projector's tokens are regressed onto the sum of the word embeddings that say what is there and where. Captions give
far less to learn from a picture; this is what makes training on one processor possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo.scenes.canvas import Mark, labels
from vllm_specvlm.zoo.scenes.settings import HIDDEN, WIDTH, Setting
from vllm_specvlm.zoo.scenes.tasks import MAIN_WORDS, SIDE_WORDS

_MAIN = {word: index for index, word in enumerate(MAIN_WORDS)}
_SIDE = {word: index for index, word in enumerate(SIDE_WORDS)}
_DULL = ("empty", "sky", "grass", "sand", "sea", "snow", "night", "ground", "wall", "floor", "road", "sign")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_DULL_WEIGHT = 0.15  # most patches show the ground


def classes(marks: Sequence[Mark], setting: Setting) -> torch.Tensor:
    """Indices ``[tokens, 2]`` of main and second word of every patch."""
    table = torch.zeros(setting.tokens, 2, dtype=torch.long)
    for patch, mark in enumerate(labels(marks, setting.grid)):
        if mark is not None:
            table[patch, 0] = _MAIN[mark.main]
            table[patch, 1] = _SIDE[mark.side]
    return table


class Teacher(nn.Module):
    """The two heads, and the embeddings to regress onto.

    Parameters
    ----------
    embedding:
        The language model's table ``[vocabulary, HIDDEN]``.
    """

    words: torch.Tensor
    sides: torch.Tensor
    weights: torch.Tensor

    def __init__(self, embedding: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.main = nn.Linear(WIDTH, len(MAIN_WORDS))
        self.side = nn.Linear(WIDTH, len(SIDE_WORDS))
        table = embedding.float()
        self.scale = float(table.std())

        def vector(word: str) -> torch.Tensor:
            if not word:
                return torch.zeros(HIDDEN)
            text = word if word.isdigit() else " " + word
            return table[tokenizer(text).input_ids].mean(0)

        self.register_buffer("words", torch.stack([vector(word) for word in MAIN_WORDS]), persistent=False)
        self.register_buffer("sides", torch.stack([vector(word) for word in SIDE_WORDS]), persistent=False)
        weights = torch.tensor([_DULL_WEIGHT if word in _DULL else 1.0 for word in MAIN_WORDS])
        self.register_buffer("weights", weights, persistent=False)
        self._rows = torch.stack([vector(word) for word in _ROWS])
        self._columns = torch.stack([vector(word) for word in _COLUMNS])

    def wanted(self, known: torch.Tensor) -> torch.Tensor:
        """The embeddings ``[B, tokens, HIDDEN]`` that patches of classes ``known [B, tokens, 2]`` should become."""
        grid = round(known.shape[1] ** 0.5)
        third = torch.arange(grid) * 3 // grid
        where = (self._rows[third][:, None] + self._columns[third][None]).reshape(grid * grid, -1)
        return self.words[known[..., 0]] + self.sides[known[..., 1]] + where

    def loss(
        self, features: torch.Tensor, tokens: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, list[float]]:
        """The loss of features and projected tokens ``[B, tokens, ...]``, and three figures: the share of patches
        that show something whose main word is right, likewise the second word, and the regression error.
        """
        weight = self.weights[known[..., 0]].flatten()
        total = weight.sum()
        main, side = self.main(features).flatten(0, 1), self.side(features).flatten(0, 1)
        right, second = known[..., 0].flatten(), known[..., 1].flatten()
        naming = (F.cross_entropy(main, right, reduction="none") * weight).sum() / total
        naming = naming + 0.5 * (F.cross_entropy(side, second, reduction="none") * weight).sum() / total
        error = ((tokens - self.wanted(known)) / self.scale).square().mean(-1).flatten()
        regression = (error * weight).sum() / total
        shown, held = weight == 1.0, second > 0
        with torch.no_grad():
            figures = [
                (main.argmax(-1) == right)[shown].float().mean().item(),
                (side.argmax(-1) == second)[held].float().mean().item(),
                regression.item(),
            ]
        return naming + 0.3 * regression, figures
