"""Files of a drafter that somebody made to do harm: refused in one line, nothing run, nothing large allocated."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_specvlm.compress.compressor import CompressorConfig, build
from vllm_specvlm.draft import exit_checkpoint, exit_config, head_checkpoint, head_config, picture_compressor
from vllm_specvlm.draft.early_exit import EarlyExit
from vllm_specvlm.draft.exit_config import ExitConfig
from vllm_specvlm.draft.feature_head import FeatureHead
from vllm_specvlm.draft.head_config import HeadConfig, TargetId

CONFIG = HeadConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    target_vocabulary=100,
    vocabulary=20,
    compressor=CompressorConfig(kind="resampler"),
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 1 << 24, (1 << 24) + 1, 1 << 62, 10**400, 0.5, -0.5, 1e308, float("nan")),
    *(float("inf"), "", "8", "../../etc/passwd", "\x00", "é" * 1000, [], [1], [[]], [-1], ["0"], [2, 1], [1 << 40]),
    *({}, {"kind": "pool"}, {"kind": []}, {"rope_type": "no such"}, {"rope_type": "linear"}, {"rope_theta": "x"}),
    {"rope_type": "yarn", "factor": "many"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    target = TargetId("some-target", "llava", 32, 4, 100, "ab" * 32)
    head_checkpoint.save(tmp_path / "head", FeatureHead(CONFIG), target, {})
    return tmp_path / "head"


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """A gigabyte more than now is not to be had: who allocates what a hostile number says fails the test."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(folder: Path) -> str | None:
    """What the refusal says, None if the head loads; anything but a ValueError of one line fails."""
    try:
        head_checkpoint.load(folder)
    except ValueError as error:
        assert "\n" not in str(error) and str(error)
        return str(error)
    return None


def test_the_limit_on_memory_works(folder: Path) -> None:
    """A control."""
    assert outcome(folder) is None
    with pytest.raises(RuntimeError, match="memory"):
        torch.ones(1 << 29)


@pytest.mark.parametrize("part", ["network", "target"])
def test_every_field_with_every_hostile_value(part: str, folder: Path) -> None:
    path = folder / "config.json"
    sound = json.loads(path.read_text())
    kind: Any = HeadConfig if part == "network" else TargetId
    refused = 0
    for field in fields(kind):
        for value in HOSTILE:
            path.write_text(json.dumps({**sound, part: {**sound[part], field.name: value}}))
            refused += outcome(folder) is not None
    assert refused > len(fields(kind)) * len(HOSTILE) // 2


@pytest.mark.parametrize("branches", [1, 50])
def test_compressors_in_compressors(branches: int, folder: Path) -> None:
    path = folder / "config.json"
    sound = json.loads(path.read_text())
    inner: dict[str, Any] = {"kind": "pool"}
    for _ in range(40):
        inner = {"kind": "select", "branches": [inner] * (branches if inner["kind"] == "pool" else 1)}
    path.write_text(json.dumps({**sound, "network": {**sound["network"], "compressor": inner}}))
    assert "compressor" in (outcome(folder) or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"specvlm_feature_head"',
        "{",
        "[" * 200_000,
        '{"model_type": "specvlm_feature_head", "format": 1}',
        '{"model_type": "specvlm_feature_head", "format": 1, "network": [], "target": {}}',
        '{"model_type": "specvlm_feature_head", "format": 1, "network": {}, "target": 5}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
        " " * (1 << 21),
        "\ufeff{}",
    ],
    ids=lambda text: text[:24] or "empty",
)
def test_configurations_that_are_none(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert outcome(folder) is not None
    head_config.is_head(folder)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{}")
    assert outcome(folder) is not None and not head_config.is_head(folder)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/head", "a\x00b", "x" * 5000, "", "/dev/null"])
def test_folders_that_are_none(name: str) -> None:
    assert not head_config.is_head(name)


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickles_are_not_opened(form: str, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    weights = folder / "model.safetensors"
    if form == "pickle":
        weights.write_bytes(pickle.dumps(_Bomb(mark)))
    else:
        torch.save({"q_proj.weight": _Bomb(mark)}, weights)
    for other in ("pytorch_model.bin", "training.pt", "model.pt"):
        shutil.copy(weights, folder / other)
    assert "cannot be read" in (outcome(folder) or "")
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Bomb(mark)))  # a control: it would have worked
    assert mark.exists()


@pytest.mark.parametrize("extra", ["../../outside", "/etc/passwd", "__class__", "a\nb", "q_proj", "x" * 100_000])
def test_names_of_tensors_are_only_names(extra: str, folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), extra: torch.zeros(2)}, weights)
    assert "do not fit" in (outcome(folder) or "")
    assert {path.name for path in tmp_path.iterdir()} == {"head"}


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor[..., :-1].contiguous(),
        lambda tensor: tensor[None],
        lambda tensor: tensor.flatten(),
        lambda tensor: tensor.to(torch.int64),
        lambda tensor: tensor.to(torch.float64),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: torch.zeros(0),
    ],
)
def test_shapes_and_types(change: Any, folder: Path) -> None:
    weights = folder / "model.safetensors"
    sound = load_file(weights)
    save_file({**sound, "q_proj.weight": change(sound["q_proj.weight"])}, weights)
    assert "'q_proj.weight'" in (outcome(folder) or "")


def test_flipped_and_cut_bytes(folder: Path) -> None:
    """Whatever a byte becomes: loaded, or refused in one line."""
    weights = folder / "model.safetensors"
    sound = weights.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(chance.choice((1, 1, 4))):
            damaged[chance.randrange(header)] = chance.randrange(256)
        weights.write_bytes(damaged if chance.random() < 0.8 else damaged[: chance.randrange(len(damaged))])
        refused += outcome(folder) is not None
    assert refused > 150


def test_a_header_that_promises_more_than_there_is(folder: Path) -> None:
    weights = folder / "model.safetensors"
    for size in (1 << 62, 1 << 40, (1 << 64) - 1, 0):
        weights.write_bytes(size.to_bytes(8, "little") + b"{}")
        assert outcome(folder) is not None
    huge = {"q_proj.weight": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}
    text = json.dumps(huge).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "cannot be read" in (outcome(folder) or "")


def test_early_exits_are_read_with_the_same_mistrust(tmp_path: Path) -> None:
    config = ExitConfig(hidden_size=32, layers=1, blocks=2, intermediate_size=48, target_vocabulary=100, vocabulary=20)
    target = TargetId("some-target", "llava", 32, 4, 100, "ab" * 32)
    folder = tmp_path / "exit"
    exit_checkpoint.save(folder, EarlyExit(config), target, {})
    exit_checkpoint.load(folder)
    path = folder / "config.json"
    sound = json.loads(path.read_text())
    names = [("network", field.name) for field in fields(ExitConfig)] + [("target", f.name) for f in fields(TargetId)]
    refused = 0
    for part, name in names:
        for value in HOSTILE:
            path.write_text(json.dumps({**sound, part: {**sound[part], name: value}}))
            try:
                exit_checkpoint.load(folder)
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > len(names) * len(HOSTILE) // 2
    for text in ("", "[]", "null", "[" * 200_000, " " * (1 << 21)):
        path.write_text(text)
        with pytest.raises(ValueError):
            exit_checkpoint.load(folder)
        assert not exit_config.is_exit(folder)


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """A draft VLM, 32 wide, of which there is nothing but its compressor."""
    picture_compressor.save(tmp_path / "draft", build(CompressorConfig(kind="resampler"), 32), 32)
    return tmp_path / "draft"


def refused(draft: Path) -> bool:
    """Whether its compressor is; anything but a ValueError of one line fails."""
    try:
        picture_compressor.load(draft, 32)
    except ValueError as error:
        assert "\n" not in str(error) and str(error)
        return True
    return False


def test_compressors_of_draft_vlms_are_read_with_the_same_mistrust(compressed: Path) -> None:
    assert not refused(compressed)
    path = compressed / picture_compressor.FOLDER / "config.json"
    sound = json.loads(path.read_text())
    names = [("hidden_size", None), *(("compressor", field.name) for field in fields(CompressorConfig))]
    count = 0
    for name, inner in names:
        for value in HOSTILE:
            changed = value if inner is None else {**sound["network"]["compressor"], inner: value}
            path.write_text(json.dumps({**sound, "network": {**sound["network"], name: changed}}))
            count += refused(compressed)
    assert count > len(names) * len(HOSTILE) // 2
    for text in ("", "[]", "null", "[" * 200_000, " " * (1 << 21), '{"network": {}}'):
        path.write_text(text)
        assert refused(compressed)


def test_pickles_in_the_place_of_compressors_are_not_opened(compressed: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = compressed / picture_compressor.FOLDER
    torch.save({"queries": _Bomb(mark)}, folder / "model.safetensors")
    for other in ("pytorch_model.bin", "model.pt"):
        shutil.copy(folder / "model.safetensors", folder / other)
    assert refused(compressed) and not mark.exists()
    (folder / "model.safetensors").unlink()
    assert refused(compressed) and not mark.exists()
