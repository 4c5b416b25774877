"""No picture at all."""

from __future__ import annotations

from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed


class TextOnly(Compressor):
    """Kind `text`: no token, the drafter reads the text alone."""

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        return Compressed.plain(tokens[:0], tokens.shape[0])
