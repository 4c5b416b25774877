"""The reference draft while it is trained: a very small LLaVA that shares the target's words.

Its embedding is ``E @ P`` and its head ``E @ Q``, with ``E`` the target's table ``[49152, 576]`` and ``P``, ``Q``
``[576, hidden]``: two small matrices are trained and shipped instead of two tables of 9.4 million numbers each. In the
built checkpoint they are plain tables.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from vllm_specvlm.zoo.language_model import HIDDEN, TEXT_CONFIG
from vllm_specvlm.zoo.sizes import DRAFT
from vllm_specvlm.zoo.target import place_images
from vllm_specvlm.zoo.vision import Eye


def text_config() -> dict[str, Any]:
    """The draft's ``text_config``: a small Llama with the target's vocabulary, positions and end tokens, untied."""
    return TEXT_CONFIG | {
        "hidden_size": DRAFT.hidden,
        "intermediate_size": DRAFT.intermediate,
        "num_hidden_layers": DRAFT.layers,
        "num_attention_heads": DRAFT.heads,
        "num_key_value_heads": DRAFT.kv_heads,
        "head_dim": DRAFT.head_dim,
        "tie_word_embeddings": False,
    }


class DraftModel(nn.Module):
    """Eye, decoder, and the two projections of the target's embedding table.

    Parameters
    ----------
    table:
        The target's embedding, bfloat16 ``[49152, 576]``; frozen.
    """

    table: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table.to(torch.bfloat16), persistent=False)
        self.eye = Eye(DRAFT.tower, DRAFT.hidden)
        # The decoder's own table is never used: inputs are embedded here.
        self.decoder = LlamaModel(
            LlamaConfig(
                **(text_config() | {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None})
            )
        )
        scale = 1.0 / (table.float().std().item() * HIDDEN**0.5)
        self.embed_in = nn.Parameter(torch.randn(HIDDEN, DRAFT.hidden) * scale)  # P: rows of E @ P have unit spread
        self.embed_out = nn.Parameter(torch.randn(HIDDEN, DRAFT.hidden) * scale * 0.05)  # Q

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything this project trains: ``eye.*``, ``decoder.*``, ``embed_in``, ``embed_out``."""
        return {
            name: value.detach() for name, value in self.state_dict().items() if name != "decoder.embed_tokens.weight"
        }

    def load_trained(self, parts: dict[str, torch.Tensor]) -> None:
        """Take over what :meth:`trained` gave."""
        self.load_state_dict(parts | {"decoder.embed_tokens.weight": self.decoder.embed_tokens.weight.detach()})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[..., hidden]`` of the tokens ``ids [...]``."""
        return torch.nn.functional.embedding(ids, self.table).float() @ self.embed_in

    def states(self, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        """Final hidden states ``[B, T, hidden]`` of ``ids [B, T]`` with ``images`` in place of the image tokens."""
        embedded = self.embed(ids)
        if images is not None:
            embedded = place_images(embedded, ids, self.eye(images))
        hidden: torch.Tensor = self.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return hidden

    def logits(self, states: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Float32 logits of ``states [N, hidden]`` over the whole vocabulary, or over the tokens ``rows`` only."""
        table = self.table if rows is None else self.table[rows]
        scores: torch.Tensor = (states @ self.embed_out.T).to(table.dtype) @ table.T
        return scores.float()
