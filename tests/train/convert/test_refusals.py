"""What cannot be converted is refused in one sentence that names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.convert.checkpoints import (
    DRAFT,
    HIDDEN,
    LLAMA,
    VOCABULARY,
    Weights,
    eagle1,
    eagle3,
    speculators,
    write,
)
from vllm_specvlm.draft import head_checkpoint
from vllm_specvlm.train.convert.conversion import convert
from vllm_specvlm.train.convert.parts import Wishes

PLAIN, LAYERS = Wishes(), Wishes(layers=(2, 6, 9))
CONFIG3 = LLAMA | {"draft_vocab_size": DRAFT}


def refused(folder: Path, wishes: Wishes = PLAIN) -> str:
    with pytest.raises(ValueError) as caught:
        convert(folder, wishes)
    said = str(caught.value)
    assert re.fullmatch(r"[^\n]+\.", said), "one sentence"
    return said


def test_no_folder(tmp_path: Path) -> None:
    assert "not a folder; download" in refused(tmp_path / "yuhuili")


def test_no_configuration(tmp_path: Path) -> None:
    write(tmp_path, eagle1())
    (tmp_path / "config.json").unlink()
    assert "no readable config.json" in refused(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration(tmp_path: Path, text: str) -> None:
    write(tmp_path, eagle1())
    (tmp_path / "config.json").write_text(text)
    assert "is not" in refused(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    write(tmp_path, eagle1())
    (tmp_path / "model.safetensors").unlink()
    assert "neither" in refused(tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, kind: str, name: str, kept: float) -> None:
    path = write(tmp_path, eagle1(), kind=kind) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "may be truncated" in refused(tmp_path)


def test_a_pickle_that_would_run_something(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    write(tmp_path, eagle1(), kind="bin")
    torch.save({"fc.weight": Trap()}, tmp_path / "pytorch_model.bin")
    assert "cannot be read" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    write(tmp_path, eagle1(), kind="bin")
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, tmp_path / "pytorch_model.bin")
    assert "not a dictionary of tensors" in refused(tmp_path)


def test_a_layout_that_is_not_known(tmp_path: Path) -> None:
    said = refused(write(tmp_path, {"medusa_head.0.weight": torch.zeros(2, 2)}))
    assert "medusa_head.0.weight" in said and "EAGLE-1" in said


def test_a_feature_head_already(tmp_path: Path) -> None:
    result = convert(write(tmp_path / "source", eagle1()), Wishes())
    head_checkpoint.save(tmp_path / "out", result.head, result.target, result.provenance)
    assert "already" in refused(tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in eagle1() if name not in ("embed_tokens.weight", "fc.bias")])
def test_a_missing_tensor_of_eagle1(tmp_path: Path, name: str) -> None:
    weights = eagle1()
    del weights[name]
    said = refused(write(tmp_path, weights))
    assert f"'{name}'" in said or "not a head of a layout" in said


@pytest.mark.parametrize("name", [name for name in eagle3() if name not in ("embed_tokens.weight", "t2d")])
def test_a_missing_tensor_of_eagle3(tmp_path: Path, name: str) -> None:
    weights = eagle3()
    del weights[name]
    said = refused(write(tmp_path, weights, CONFIG3), LAYERS)
    assert f"'{name}'" in said or "not a head of a layout" in said


@pytest.mark.parametrize("name", [name for name in eagle1() if name != "fc.bias"])
def test_a_tensor_of_another_shape(tmp_path: Path, name: str) -> None:
    weights = eagle1()
    weights[name] = weights[name].repeat_interleave(2, dim=0)
    assert f"'{name}'" in refused(write(tmp_path, weights))


def test_an_unknown_tensor(tmp_path: Path) -> None:
    weights = eagle3()
    weights.norm("midlayer.self_attn.q_norm")
    said = refused(write(tmp_path, weights, CONFIG3), LAYERS)
    assert "'midlayer.self_attn.q_norm.weight', unknown in EAGLE-3" in said


def test_rotary_frequencies_are_no_part_of_a_head(tmp_path: Path) -> None:
    weights = eagle1()
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    convert(write(tmp_path, weights), Wishes())


def test_quantised_tensors(tmp_path: Path) -> None:
    weights = eagle1()
    weights["layers.0.mlp.up_proj.weight"] = weights["layers.0.mlp.up_proj.weight"].to(torch.int8)
    assert "torch.int8; give a head that is not quantised" in refused(write(tmp_path, weights))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write(tmp_path, eagle1())
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert "repeats the tensor" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"sliding_window": 512}, "sliding window of 512"),
        ({"layer_types": ["sliding_attention"]}, "'sliding_attention'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"num_attention_heads": "4"}, "num_attention_heads = '4'"),
        ({"num_key_value_heads": 3}, "k_proj"),
        ({"bias": False}, "bias = False"),
        ({"qkv_bias": True}, "no tensor 'layers.0.self_attn.q_proj.bias'"),
        ({"norm_before_fc": True}, "norm_before_fc = True"),
        ({"mystery_gate": 3}, "'mystery_gate' (3); if it does not change the network, pass --ignore mystery_gate"),
    ],
)
def test_a_configuration_that_means_something_else(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    assert named in refused(write(tmp_path, eagle1(), LLAMA | changed))


def test_unknown_keys_that_are_off_or_ignored(tmp_path: Path) -> None:
    write(tmp_path, eagle1(), LLAMA | {"mystery_gate": 3, "mystery_switch": False, "sliding_window": None})
    convert(tmp_path, Wishes(ignored=frozenset({"mystery_gate"})))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights["d2t"].fill_(-1), "'d2t'"),
        (lambda weights: weights["d2t"].fill_(VOCABULARY), "outside the vocabulary"),
        (lambda weights: weights["d2t"][1:].sub_(1), "contradict"),
        (lambda weights: weights["t2d"].logical_not_(), "contradict"),
        (lambda weights: weights.update(d2t=weights["d2t"][:-1]), "shape (19,)"),
        (lambda weights: weights.update(d2t=weights["d2t"].float()), "float32"),
    ],
)
def test_a_vocabulary_that_cannot_be(tmp_path: Path, change: Callable[[Weights], object], named: str) -> None:
    weights = eagle3()
    change(weights)
    said = refused(write(tmp_path, weights, CONFIG3), LAYERS)
    assert named in said or "twice or outside" in said


@pytest.mark.parametrize(
    ("kind", "changed", "named"),
    [
        ("dflash", {}, "kind 'dflash'"),
        ("eagle3", {"norm_before_residual": None}, "does not say norm_before_residual"),
        ("eagle3", {"norm_before_residual": False, "norm_before_fc": True}, "norm_before_fc"),
        ("eagle3", {"norm_before_residual": False, "fc_norm": True}, "fc_norm"),
        ("eagle3", {"norm_before_residual": False, "surprise": "x"}, "'surprise' (x)"),
        ("eagle", {"layernorms": True}, "layernorms"),
        ("eagle", {"transformer_layer_architecture": "Other"}, "a Other"),
        ("eagle3", {"transformer_layer_config": {"model_type": "gemma"}}, "type 'gemma'"),
    ],
)
def test_heads_of_the_speculators_library(tmp_path: Path, kind: str, changed: dict[str, Any], named: str) -> None:
    assert named in refused(write(tmp_path, eagle3(prefix="layers.0"), speculators(kind, **changed)), PLAIN)


def test_rotary_positions_of_every_spelling(tmp_path: Path) -> None:
    def rope(**changed: Any) -> dict[str, Any]:
        config = {key: value for key, value in LLAMA.items() if key != "rope_theta"} | changed
        return convert(write(tmp_path, eagle1(), config), Wishes()).head.config.rope_parameters

    plain = {"rope_type": "default", "rope_theta": 7.0}
    assert rope() == plain | {"rope_theta": 10000.0}
    assert rope(rope_theta=7, rope_scaling=None) == plain
    assert rope(rope_parameters=plain, rope_theta=None) == plain
    assert rope(rope_theta=7, rope_scaling={"type": "linear", "factor": 2.0}) == plain | {
        "rope_type": "linear",
        "factor": 2.0,
    }
    assert rope(rope_theta=7, rope_scaling={"rope_type": "default", "type": "mrope", "mrope_section": [1, 2]}) == plain
    assert rope(rope_theta=7, rope_scaling={"type": "mrope", "mrope_section": [1, 2]}) == plain


def test_mrope_is_said(tmp_path: Path) -> None:
    config = LLAMA | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    notes = convert(write(tmp_path, eagle1(), config), Wishes()).notes
    assert any("M-RoPE" in note for note in notes)


def test_hidden_sizes_are_the_configurations(tmp_path: Path) -> None:
    assert json.loads((write(tmp_path, eagle1()) / "config.json").read_text())["hidden_size"] == HIDDEN
    assert "fc.weight" in refused(write(tmp_path, eagle1(), LLAMA | {"hidden_size": 2 * HIDDEN}))


def test_layers_are_no_choice_of_eagle1(tmp_path: Path) -> None:
    assert "leave out --layers" in refused(write(tmp_path, eagle1()), LAYERS)
