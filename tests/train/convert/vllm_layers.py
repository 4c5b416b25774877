"""vLLM's own code of both heads, on the CPU: names through its weight mapper, its layers, its forward passes.

Run as a module with folders of heads, in a process of its own, since it starts vLLM's parallel groups. Writes
`logits.pt` (EAGLE-1: states) into each. Only attention over the cache is replaced, by `comparison.caching`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.train.convert.checkpoints import DRAFT, HEAD_DIM, HIDDEN, LAYERS, LLAMA, VOCABULARY
from tests.train.convert.comparison import caching, features, play


class Attention(nn.Module):
    """In place of vLLM's cache."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
        self.attend = caching()

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads = (x.unflatten(-1, (-1, HEAD_DIM)) for x in (queries, keys, values))
        return self.attend(*heads).flatten(-2)


class Shell(nn.Module):
    """The attributes that vLLM's models' forward passes use."""

    use_aux_hidden_state, norm_before_fc, fc_norm, norm_output = True, False, None, False

    def __init__(self, layer: nn.Module, norm: nn.Module | None, wide: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])
        self.fc = nn.Linear(wide * HIDDEN, HIDDEN, bias=False)
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        if norm is not None:
            self.norm = norm

    def embed_input_ids(self, tokens: Tensor) -> Tensor:
        return self.embed_tokens(tokens)


def load(shell: Shell, weights: dict[str, Tensor], mapper: Any) -> None:
    from vllm.model_executor.models.utils import AutoWeightsLoader

    plain = [(name, tensor) for name, tensor in weights.items() if name not in ("d2t", "t2d", "lm_head.weight")]
    AutoWeightsLoader(shell).load_weights(plain, mapper=mapper)
    for module in shell.modules():
        if (method := getattr(module, "quant_method", None)) is not None:
            method.process_weights_after_loading(module)


def eagle1(vllm_config: Any, config: Any, weights: dict[str, Tensor], number: int) -> Tensor:
    from vllm.model_executor.models import llama_eagle

    class Layer(llama_eagle.LlamaDecoderLayer):
        def get_quant_config(self, vllm_config: Any) -> None:
            return None

    layer = Layer(vllm_config, True, prefix=f"model.layers.{number}", config=config)
    shell = Shell(layer, None, 2)
    load(shell, weights, llama_eagle.LlamaModel.hf_to_vllm_mapper)

    def step(state: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        return llama_eagle.LlamaModel.forward(shell, tokens, positions, state)[1]

    return play(step, features(HIDDEN), lambda state: state)


def eagle3(vllm_config: Any, config: Any, weights: dict[str, Tensor], number: int) -> Tensor:
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.models import llama_eagle3

    class Layer(llama_eagle3.LlamaDecoderLayer):
        def get_quant_config(self, vllm_config: Any) -> None:
            return None

    layer = Layer(vllm_config, prefix=f"model.layers.{number}", config=config)
    shell = Shell(layer, RMSNorm(HIDDEN, eps=config.rms_norm_eps), 3)
    load(shell, weights, llama_eagle3.LlamaModel.hf_to_vllm_mapper)
    model = SimpleNamespace(
        model=shell,
        config=SimpleNamespace(draft_vocab_size=DRAFT, vocab_size=VOCABULARY),
        draft_id_to_target_id=weights["d2t"],
        lm_head=weights["lm_head.weight"],
        logits_processor=lambda matrix, hidden: hidden @ matrix.T,
    )
    family = llama_eagle3.Eagle3LlamaForCausalLM

    def step(state: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        # vLLM hands on the normed state for the logits, and the plain one for the next step
        normed, plain = llama_eagle3.LlamaModel.forward(shell, tokens, positions, state)
        seen.append(normed)
        return plain

    seen: list[Tensor] = []
    state = family.combine_hidden_states(model, features(3 * HIDDEN))
    return play(step, state, lambda _: family.compute_logits(model, seen[-1]))


@torch.no_grad()
def main(*folders: str) -> None:
    import vllm.model_executor.models.llama
    from transformers import LlamaConfig
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    vllm.model_executor.models.llama.Attention = Attention
    vllm_config = VllmConfig()
    with set_current_vllm_config(vllm_config), tempfile.TemporaryDirectory() as meeting:
        init_distributed_environment(1, 0, f"file://{meeting}/point", 0, "gloo")
        initialize_model_parallel(1, 1)
        for number, folder in enumerate(map(Path, folders)):
            given = json.loads((folder / "config.json").read_text())
            config = LlamaConfig(**LLAMA)
            config.norm_before_residual = given.get("norm_before_residual", False)
            weights = load_file(folder / "model.safetensors")
            # the layer's number is its name in vLLM's register, hence one for each
            found = (eagle3 if "d2t" in weights else eagle1)(vllm_config, config, weights, LAYERS + number)
            torch.save(found, folder / "logits.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
