"""The checkpoint says what the model in training said: adapters merged, whitening folded, positions interpolated."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import SiglipVisionConfig, SiglipVisionModel

from vllm_specvlm import zoo
from vllm_specvlm.zoo.scenes import build, parts, scenes_target
from vllm_specvlm.zoo.scenes.onnx_file import OnnxFile
from vllm_specvlm.zoo.scenes.settings import (
    COARSE,
    FINE,
    HIDDEN,
    NATIVE_GRID,
    TOWER_INTERMEDIATE,
    WIDTH,
    Setting,
)
from vllm_specvlm.zoo.scenes.target import Eye, adapters
from vllm_specvlm.zoo.scenes.tower import load_tensors, position_table


class RandomOnnx:
    """Weights of the right shapes."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def tensor(self, name: str) -> NDArray[np.float32]:
        if "projection.weight" in name:
            return self._made(WIDTH, 3, 14, 14)
        if name.endswith(("norm1.weight", "norm2.weight", "lambda1")):
            return 1 + self._made(WIDTH)
        return self._made(TOWER_INTERMEDIATE if "fc1" in name else WIDTH)

    def weight_of(self, node: str) -> NDArray[np.float32]:
        if "Reshape_1" in node:
            return self._made(1, NATIVE_GRID * NATIVE_GRID, WIDTH)
        if "fc1" in node:
            return self._made(WIDTH, TOWER_INTERMEDIATE)
        return self._made(TOWER_INTERMEDIATE, WIDTH) if "fc2" in node else self._made(WIDTH, WIDTH)

    def _made(self, *shape: int) -> NDArray[np.float32]:
        return (0.05 * self._rng.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def eye() -> tuple[dict[str, torch.Tensor], Eye]:
    torch.manual_seed(0)
    weights = load_tensors(RandomOnnx())  # type: ignore[arg-type]
    eye = Eye(weights).eval()
    with torch.no_grad():
        for name, value in adapters(eye.layers).items():
            if name.endswith(".up"):
                value.normal_(std=0.05)
    eye.whiten(torch.randn(2, 3, COARSE.side, COARSE.side))
    return weights, eye


@pytest.mark.parametrize("setting", (COARSE, FINE), ids=lambda setting: setting.name)
def test_a_checkpoint_sees_what_the_trained_eye_saw(eye: tuple[dict[str, torch.Tensor], Eye], setting: Setting) -> None:
    weights, trained = eye
    made = build.tensors(setting, {}, weights, trained.trained())
    config = SiglipVisionConfig(**setting.vision_config())
    tower = SiglipVisionModel(config).eval()
    prefix = "vision_tower.vision_model."
    own = {name.removeprefix(prefix): v.float() for name, v in made.items() if name.startswith(prefix)}
    body = tower.vision_model if hasattr(tower, "vision_model") else tower
    body.load_state_dict(own)
    images = torch.randn(1, 3, setting.side, setting.side)

    def project(features: torch.Tensor) -> torch.Tensor:
        def linear(x: torch.Tensor, number: int) -> torch.Tensor:
            name = f"multi_modal_projector.linear_{number}."
            return torch.nn.functional.linear(x, made[name + "weight"].float(), made[name + "bias"].float())

        return linear(torch.nn.functional.gelu(linear(features, 1)), 2)

    with torch.no_grad():
        wanted = trained.project(trained.features(images))
        states = tower(images, output_hidden_states=True).hidden_states[-1]
        found = project(states)
    assert found.shape == (1, setting.tokens, HIDDEN)
    error = (found - wanted).square().mean().sqrt() / wanted.std()
    assert error < 0.05  # bfloat16 on either side
    plain = build.tensors(setting, {}, weights, {k: v for k, v in trained.trained().items() if "tower." not in k})
    key = prefix + "encoder.layers.0.mlp.fc1.weight"
    assert (plain[key].float() - made[key].float()).abs().max() > 0.01  # the adapters did change something


def test_positions_are_kept_at_the_native_grid_and_averaged_below() -> None:
    native = torch.randn(NATIVE_GRID * NATIVE_GRID, WIDTH)
    assert torch.allclose(position_table(native, NATIVE_GRID), native, atol=1e-5)
    ramp = torch.arange(NATIVE_GRID).float().repeat(NATIVE_GRID)[:, None].expand(-1, WIDTH)
    small = position_table(ramp, 12).reshape(12, 12, WIDTH)
    assert torch.allclose(small[0], small[7], atol=1e-3) and (small[0].diff(dim=0) > 0).all()


def test_resolve_knows_both_settings_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVLM_HOME", str(tmp_path))
    for name in ("scenes-target", "scenes-target-576"):
        folder = tmp_path / "scenes" / parts.fingerprint() / name
        folder.mkdir(parents=True)
        assert zoo.resolve(f"specvlm/{name}") == str(folder)
    with pytest.raises(zoo.ZooError, match="There is no model specvlm/scenes-target-9: the models are"):
        zoo.resolve("specvlm/scenes-target-9")
    with pytest.raises(zoo.ZooError, match="no reference model specvlm/scenes-target-9"):
        scenes_target("scenes-target-9", tmp_path)


def test_a_missing_part_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PATH", tmp_path / "target.safetensors")
    with pytest.raises(zoo.ZooError, match=r"of the scenes target is missing; install the package again"):
        scenes_target("scenes-target", tmp_path)


def test_the_whitening_is_stored_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FOLDER", tmp_path)
    monkeypatch.setattr(parts, "PATH", tmp_path / "target.safetensors")
    before = parts.fingerprint()
    value = torch.tensor([1.0001])
    parts.save({"projector.mean": value, "projector.linear_1.bias": value})
    kept = parts.load()
    assert kept["projector.mean"].equal(value) and not kept["projector.linear_1.bias"].float().equal(value)
    assert parts.fingerprint() != before


def _message(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def test_an_onnx_file_gives_its_tensors_by_name_and_by_node(tmp_path: Path) -> None:
    raw = struct.pack("<6f", *range(6))
    tensor = bytes([1 << 3, 2, 1 << 3, 3, 2 << 3, 1]) + _message(8, b"w") + _message(9, raw)
    node = _message(1, b"x") + _message(1, b"w") + _message(2, b"y") + _message(3, b"/MatMul") + _message(4, b"MatMul")
    path = tmp_path / "model.onnx"
    path.write_bytes(_message(7, _message(1, node) + _message(5, tensor)))
    onnx = OnnxFile(path)
    assert onnx.names == ["w"]
    assert onnx.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert onnx.weight_of("/MatMul").shape == (2, 3)
    with pytest.raises(KeyError):
        onnx.tensor("v")
    path.write_bytes(_message(7, bytes([1 << 3 | 3])))
    with pytest.raises(ValueError, match="wire type 3"):
        OnnxFile(path)
