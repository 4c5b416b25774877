"""What every compressor is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig


class Compressor(nn.Module, ABC):
    """Makes a picture's few tokens from its many: one picture, or one video, at a time.

    The result depends on nothing but the picture and what stands before it, since the drafter's KV blocks are shared by
    all requests with that prefix. In evaluation mode it is a function of the inputs; in training mode, selection
    draws noise from torch's generator of the gate's device.
    """

    tau: float = 1.0
    """Temperature of the Gumbel softmax in training, above 0, lowered by the trainer from 1 to 0.1. Only selection
    looks at it."""
    explore: bool = False
    """Whether training draws all branches alike, and the gate learns nothing: else it would give up a branch that the
    drafter has not learned to read yet. Only selection looks at it."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: Tensor, before: Tensor) -> Compressed:
        """Compress one picture.

        Args:
            tokens: [V, H], V of 1 or more, of the parameters' dtype and device: the target's own visual tokens, as its
                language model reads them.
            before: [H]: the mean embedding of the tokens in front of the picture; zeros if there are none.

        Raises:
            ValueError: shapes that do not fit together, in one sentence.
        """
        if tokens.dim() != 2 or tokens.shape[0] == 0:
            raise ValueError(f"A picture's tokens have shape {tuple(tokens.shape)}; pass [V, H] with V of 1 or more.")
        if before.shape != tokens.shape[1:]:
            raise ValueError(
                f"The mean before a picture has shape {tuple(before.shape)}; pass {tuple(tokens.shape[1:])}."
            )
        return self._compress(tokens, before)

    @abstractmethod
    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        """`forward` with its arguments checked."""
