"""First stage of either model: teach the tower to see, from the renderer's own labels.

Each of the nine places is four patches. Linear heads on their mean must name size, colour and shape (or nothing); for
the target, the projector's tokens are also regressed onto the sum of the word embeddings that name what is there and
where. This is far stronger supervision than captions give, and it is what lets the whole pair be trained on two CPU
cores in an hour.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F

from vllm_specvlm.zoo.pictures import BOARD, COLOURS, PLACES, SHAPES, SIZES, Scene, Split, draw, sample_scene
from vllm_specvlm.zoo.vision import IMAGE_SIDE, PATCH, Eye, pixels

_ATTRIBUTES = (tuple(SIZES), tuple(COLOURS), SHAPES)
_ROW_WORDS, _COLUMN_WORDS = ("top", "middle", "bottom"), ("left", "middle", "right")
_GRID = IMAGE_SIDE // PATCH
PLACE_OF_PATCH = torch.tensor(
    [(patch // _GRID) * BOARD // _GRID * BOARD + (patch % _GRID) * BOARD // _GRID for patch in range(_GRID * _GRID)]
)


def batch(rng: random.Random, size: int, split: Split = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``[size, 3, 96, 96]`` and labels ``[size, 9, 3]`` (size, colour, shape; the last class of each is
    "nothing").
    """
    scenes = [sample_scene(rng, split) for _ in range(size)]
    images = torch.stack([pixels(draw(scene, rng)) for scene in scenes])
    return images, torch.stack([labels(scene) for scene in scenes])


def labels(scene: Scene) -> torch.Tensor:
    """Classes ``[9, 3]`` of every place of ``scene``."""
    table = torch.tensor([[len(names) for names in _ATTRIBUTES]] * PLACES)
    for item in scene.items:
        values = (item.size, item.colour, item.shape)
        table[item.place] = torch.tensor([names.index(value) for names, value in zip(_ATTRIBUTES, values, strict=True)])
    return table


class Labeller(nn.Module):
    """Linear heads that read size, colour and shape off the patch features of each place. Thrown away after this
    stage.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(names) + 1) for names in _ATTRIBUTES)

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Patch features ``[B, 36, width]`` to logits ``[B, 9, classes]`` per attribute."""
        member = F.one_hot(PLACE_OF_PATCH, PLACES).to(features.dtype)
        means = torch.einsum("bpw,pq->bqw", features, member / member.sum(0))
        return [head(means) for head in self.heads]


def label_loss(logits: list[torch.Tensor], classes: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Sum of the cross-entropies, and the accuracy of each attribute over all places."""
    loss = logits[0].new_zeros(())
    accuracy = []
    for index, scores in enumerate(logits):
        wanted = classes[..., index]
        loss = loss + F.cross_entropy(scores.flatten(0, 1), wanted.flatten())
        accuracy.append((scores.argmax(-1) == wanted).float().mean().item())
    return loss, accuracy


class WordTargets:
    """What the projector should say of every place: the sum of the embeddings of its words.

    Parameters
    ----------
    embedding:
        The language model's table ``[vocabulary, hidden]``.
    token_of:
        A word (without its leading blank) to its token id.
    """

    def __init__(self, embedding: torch.Tensor, token_of: dict[str, int]) -> None:
        table = embedding.float()
        self.scale = table.std()
        nothing = table[token_of["empty"]]
        self._tables = [torch.stack([*(table[token_of[name]] for name in names), nothing]) for names in _ATTRIBUTES]
        self._where = torch.stack(
            [table[token_of[row]] + table[token_of[column]] for row in _ROW_WORDS for column in _COLUMN_WORDS]
        )

    @staticmethod
    def words() -> list[str]:
        """Every word whose token id is needed."""
        return sorted({"empty", *_ROW_WORDS, *_COLUMN_WORDS, *(name for names in _ATTRIBUTES for name in names)})

    def loss(self, tokens: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Mean squared error, in units of the embedding's spread, of projector outputs ``[B, 36, hidden]``."""
        said = self._where + sum(
            (table[classes[..., i]] for i, table in enumerate(self._tables)), start=torch.zeros(())
        )
        return F.mse_loss(tokens / self.scale, said[:, PLACE_OF_PATCH] / self.scale)


@torch.no_grad()
def accuracy(eye: Eye, labeller: Labeller, seed: int, count: int = 256) -> list[float]:
    """Held-out accuracy of size, colour and shape over all nine places of ``count`` test pictures."""
    images, classes = batch(random.Random(seed), count, "test")
    return label_loss(labeller(eye.features(images)), classes)[1]
