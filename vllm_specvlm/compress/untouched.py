"""The picture as it is."""

from __future__ import annotations

from torch import Tensor

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed


class Untouched(Compressor):
    """Kind `none`: all V tokens."""

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        return Compressed.plain(tokens, tokens.shape[0])
