"""Feature heads on disk: what is saved is loaded, what is damaged or foreign is refused in a sentence."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.draft import checkpoint_folder, head_checkpoint, head_config
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
    feature_layers=(1, 2),
    compressor=CompressorConfig(kind="select"),
)
TARGET = TargetId("some-target", "llava", 32, 4, 100, "ab" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    head_checkpoint.save(tmp_path / "head", FeatureHead(CONFIG), TARGET, {"steps": 3})
    return tmp_path / "head"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(folder: Path) -> None:
    torch.manual_seed(0)
    original = FeatureHead(CONFIG)
    head, target = head_checkpoint.load(folder)
    assert head.config == CONFIG and target == TARGET
    assert head_config.is_head(folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "provenance.json"}
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, head.state_dict()[name]), name


def test_saving_again_replaces(folder: Path) -> None:
    head = FeatureHead(CONFIG)
    head_checkpoint.save(folder, head, TARGET, {"steps": 4})
    assert torch.equal(head_checkpoint.load(folder)[0].q_proj.weight, head.q_proj.weight)
    assert [p.name for p in folder.parent.iterdir()] == ["head"], "something was left beside it"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_the_umask_says_who_may_read_it(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        head_checkpoint.save(tmp_path / "head", FeatureHead(CONFIG), TARGET, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "head").iterdir()} == {0o666 & ~mask}


def test_a_failed_save_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    before = head_checkpoint.load(folder)[0].q_proj.weight
    monkeypatch.setattr(checkpoint_folder, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        head_checkpoint.save(folder, FeatureHead(CONFIG), TARGET, {})
    assert torch.equal(head_checkpoint.load(folder)[0].q_proj.weight, before)
    assert [p.name for p in folder.parent.iterdir()] == ["head"]


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read .* copy the checkpoint again"):
        head_checkpoint.load(folder)


def test_weights_of_another_configuration(folder: Path) -> None:
    network = json.loads((folder / "config.json").read_text())["network"]
    edit(folder, network=network | {"intermediate_size": 64})
    with pytest.raises(ValueError, match=r"do not fit their config\.json: 'down_proj\.weight'"):
        head_checkpoint.load(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "upgrade vllm_specvlm"),
        ({"network": {"hidden_size": 32}}, "does not describe the feature head"),
        ({"model_type": "llama"}, "not 'specvlm_feature_head'"),
        ({"target": {"name": "x", "who": 1}}, "does not describe the feature head"),
    ],
)
def test_configurations_that_cannot_be_used(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ValueError, match=said):
        head_config.read_config(folder)


def test_unknown_network_keys_are_refused(folder: Path) -> None:
    network = json.loads((folder / "config.json").read_text())["network"]
    edit(folder, network=network | {"mystery": 1})
    with pytest.raises(ValueError, match="mystery"):
        head_config.read_config(folder)


def test_no_head_there(tmp_path: Path) -> None:
    assert not head_config.is_head(tmp_path)
    with pytest.raises(ValueError, match="There is no feature head at"):
        head_config.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        head_config.read_config(tmp_path)


def test_targets_are_told_apart() -> None:
    assert TARGET.differs(replace(TARGET, name="another name")) is None
    assert TARGET.differs(replace(TARGET, digest=None)) is None
    assert TARGET.differs(replace(TARGET, layers=5)) == "its layers is 5, not 4"
    said = TARGET.differs(replace(TARGET, digest="cd" * 32))
    assert said is not None and said.startswith("its digest is cdcd")
    known = replace(TARGET, layer_digest="ab" * 32, projector_digest="ab" * 32)
    assert known.differs(TARGET) is None and TARGET.differs(known) is None
    said = known.differs(replace(known, layer_digest="cd" * 32))
    assert said is not None and said.startswith("its layer digest is cdcd")


def test_bad_configurations() -> None:
    for wrong, said in (
        ({"fusion": "narrow"}, "must be 'linear' or 'wide'"),
        ({"fusion": "wide", "compressor": CompressorConfig("adaptor")}, "whose vector is added behind a 'linear' one"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"vocabulary": 101}, "must be 1 to the target's 100"),
        ({"vocabulary": 0}, "vocabulary is 0; write a whole number from 1 to"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(CONFIG, **wrong)


@pytest.mark.parametrize("tokens", [[0] * 20, [-1, *range(19)], [*range(19), 100], [1, 0, *range(2, 20)]])
def test_vocabulary_must_be_tokens_of_the_target(folder: Path, tokens: list[int]) -> None:
    head, target = head_checkpoint.load(folder)
    head.vocabulary.copy_(torch.tensor(tokens))
    head_checkpoint.save(folder, head, target, {})
    with pytest.raises(ValueError, match="no ascending list of the target's tokens"):
        head_checkpoint.load(folder)


def test_vocabulary_must_be_int64(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"vocabulary": tensors["vocabulary"].int()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="no ascending list of the target's tokens in int64"):
        head_checkpoint.load(folder)


def test_weights_must_be_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3, 1] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"are no finite numbers \('lm_head.weight'\)"):
        head_checkpoint.load(folder)


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (-1, 2)])
def test_feature_layers_must_ascend(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend from 0"):
        replace(CONFIG, feature_layers=layers)
