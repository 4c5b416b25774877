"""Tiny public heads and targets with random weights, on disk as their authors write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY, DRAFT = 64, 4, 2, 32, 96, 50, 20
LAYERS = 12
"""Of the target: an EAGLE-3 head reads the states entering layers 2, 6 and 9."""

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "head_dim": HEAD_DIM,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


class Weights(dict[str, Tensor]):
    """Random tensors of a seed, large enough that every part of a network moves its logits."""

    def __init__(self, seed: int, hidden: int = HIDDEN, inner: int = INNER) -> None:
        super().__init__()
        self.hidden, self.inner = hidden, inner
        self._random = torch.Generator().manual_seed(seed)

    def linear(self, name: str, rows: int, columns: int, bias: bool = False) -> None:
        self[f"{name}.weight"] = torch.randn(rows, columns, generator=self._random) * columns**-0.5
        if bias:
            self[f"{name}.bias"] = torch.randn(rows, generator=self._random) * 0.5

    def norm(self, name: str) -> None:
        self[f"{name}.weight"] = torch.rand(self.hidden, generator=self._random) + 0.5

    def table(self, name: str, rows: int) -> None:
        self[f"{name}.weight"] = torch.randn(rows, self.hidden, generator=self._random)

    def layer(self, prefix: str, width: int, bias: bool = False) -> None:
        self.linear(f"{prefix}.self_attn.q_proj", HEADS * HEAD_DIM, width, bias)
        self.linear(f"{prefix}.self_attn.k_proj", KV_HEADS * HEAD_DIM, width, bias)
        self.linear(f"{prefix}.self_attn.v_proj", KV_HEADS * HEAD_DIM, width, bias)
        self.linear(f"{prefix}.self_attn.o_proj", self.hidden, HEADS * HEAD_DIM)
        self.linear(f"{prefix}.mlp.gate_proj", self.inner, self.hidden)
        self.linear(f"{prefix}.mlp.up_proj", self.inner, self.hidden)
        self.linear(f"{prefix}.mlp.down_proj", self.hidden, self.inner)
        self.norm(f"{prefix}.post_attention_layernorm")


def eagle1(
    seed: int = 1, *, bias: bool = True, qkv_bias: bool = False, hidden: int = HIDDEN, inner: int = INNER
) -> Weights:
    """An EAGLE-1 head's tensors."""
    weights = Weights(seed, hidden, inner)
    weights.table("embed_tokens", VOCABULARY)
    weights.linear("fc", hidden, 2 * hidden, bias)
    weights.layer("layers.0", hidden, qkv_bias)
    return weights


def eagle3(seed: int = 2, *, prefix: str = "midlayer", states: int = 3, bias: bool = False) -> Weights:
    """An EAGLE-3 head's tensors: DRAFT tokens spread over the vocabulary."""
    weights = Weights(seed)
    weights.table("embed_tokens", VOCABULARY)
    weights.linear("fc", HIDDEN, states * HIDDEN)
    weights.norm(f"{prefix}.input_layernorm")
    weights.norm(f"{prefix}.hidden_norm")
    weights.layer(prefix, 2 * HIDDEN, bias)
    weights.norm("norm")
    weights.linear("lm_head", DRAFT, HIDDEN)
    tokens = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))[:DRAFT].sort().values
    weights["d2t"] = tokens - torch.arange(DRAFT)
    weights["t2d"] = torch.zeros(VOCABULARY, dtype=torch.bool)
    weights["t2d"][tokens] = True
    return weights


def vispec(
    seed: int = 3,
    *,
    bias: bool = True,
    qkv_bias: bool = False,
    queries: int = 2,
    hidden: int = HIDDEN,
    inner: int = INNER,
) -> Weights:
    """A ViSpec head's tensors."""
    weights = eagle1(seed, bias=bias, qkv_bias=qkv_bias, hidden=hidden, inner=inner)
    weights["imadpt.q"] = torch.randn(queries, HEADS, hidden // HEADS, generator=torch.Generator().manual_seed(seed))
    weights.linear("imadpt.k_proj", hidden, hidden, qkv_bias)
    weights.linear("imadpt.v_proj", hidden, hidden, qkv_bias)
    weights.linear("imadpt.o_proj", hidden, hidden)
    weights.linear("img_fc", hidden, 2 * hidden, bias)
    return weights


def speculators(kind: str, **outer: Any) -> dict[str, Any]:
    """The configuration that the speculators library writes around a layer's."""
    shared = {
        "speculators_model_type": kind,
        "speculators_version": "0.3.0",
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "acme/target-8b"},
        },
        "transformer_layer_config": {key: LLAMA[key] for key in LLAMA if key != "architectures"},
    }
    return shared | outer


def write(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any] | None = None, kind: str = "safetensors"
) -> Path:
    """Write a checkpoint; the configuration is a Llama's unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    if kind == "bin":
        torch.save(dict(weights), folder / "pytorch_model.bin")
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def write_target(
    folder: Path,
    embedding: Tensor | None = None,
    *,
    nested: bool = False,
    dtype: torch.dtype = torch.float32,
    **changed: Any,
) -> Path:
    """Write a target: its embedding table (random unless given), final norm and output layer; `nested` as in a VLM."""
    random = torch.Generator().manual_seed(9)
    table = torch.randn(VOCABULARY, HIDDEN, generator=random) if embedding is None else embedding
    text = LLAMA | {"num_hidden_layers": LAYERS, "vocab_size": len(table)} | changed
    config = {"model_type": "llava", "text_config": text} if nested else text
    inner, outer = ("model.language_model.", "") if nested else ("model.", "")
    weights = {
        f"{inner}embed_tokens.weight": table.to(dtype),
        f"{inner}norm.weight": torch.rand(HIDDEN, generator=random).to(dtype),
        f"{outer}lm_head.weight": torch.randn(len(table), HIDDEN, generator=random).to(dtype),
    }
    return write(folder, weights, config)
