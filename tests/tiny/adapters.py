"""LoRA adapters and int8 versions of the tiny LLaVA checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
_RANK = 8


def _layers(weights: dict[str, torch.Tensor]) -> list[str]:
    """The language model's linear layers, by the checkpoint's names without `.weight`."""
    names = [name.removesuffix(".weight") for name in weights if name.startswith("language_model.model.layers.")]
    return [name for name in names if name.endswith((*_LINEAR, "mlp.up_proj", "mlp.down_proj"))]


def build_adapter(target: Path, out: Path, seed: int, strength: float = 0.15) -> Path:
    """An adapter (PEFT's format) of random matrices, strong enough to change what the target says."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    weights = load_file(target / "model.safetensors")
    for name in _layers(weights):
        if not name.endswith(_LINEAR):
            continue
        rows, columns = weights[f"{name}.weight"].shape
        for part, shape in (("lora_A", (_RANK, columns)), ("lora_B", (rows, _RANK))):
            made[f"base_model.model.{name}.{part}.weight"] = torch.randn(shape, generator=generator) * strength
    out.mkdir(parents=True, exist_ok=True)
    save_file(made, out / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in _LINEAR})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": modules, "bias": "none"}
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def quantise(target: Path, out: Path) -> Path:
    """The checkpoint with int8 weights (one scale a channel) and int8 activations (one scale a token).

    The format is compressed-tensors', which vLLM runs on CPUs too. Vision tower and output layer stay as they are.
    """
    shutil.copytree(target, out)
    weights = load_file(target / "model.safetensors")
    for name in _layers(weights):
        weight = weights.pop(f"{name}.weight")
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        weights[f"{name}.weight"] = (weight / scale).round().clamp(-128, 127).to(torch.int8)
        weights[f"{name}.weight_scale"] = scale
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["re:.*vision.*", "re:.*multi_modal.*", "re:.*lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight, "strategy": "token", "dynamic": True},
            }
        },
    }
    (out / "config.json").write_text(json.dumps(config))
    return out
