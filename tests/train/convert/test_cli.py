"""`specvlm convert`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.train.convert.checkpoints import DRAFT, LAYERS, LLAMA, VOCABULARY, eagle1, eagle3, write, write_target
from vllm_specvlm.cli import convert
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.draft import checkpoint_folder, head_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", eagle3(), LLAMA | {"draft_vocab_size": DRAFT})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "target", eagle3()["embed_tokens.weight"])


def test_it_writes_a_head(tmp_path: Path, source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert convert.main([str(source), "--target", str(target), "--out", str(out)]) == 0
    head, made_for = head_checkpoint.load(out)
    assert head.config.feature_layers == (2, LAYERS // 2, LAYERS - 3)
    assert (made_for.name, made_for.layers) == ("target", LAYERS)
    assert json.loads((out / "provenance.json").read_text())["layout"] == "EAGLE-3"
    said = capsys.readouterr()
    assert f"{DRAFT} of {VOCABULARY} tokens" in said.out
    assert "layers 2, 6, 9" in said.out
    assert "embedding table is the target's" in said.err


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "source", eagle1())
    assert convert.main([str(source), "--out", str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["layout"] == "EAGLE-1"
    assert not said.err


def test_a_head_is_replaced_and_nothing_else(tmp_path: Path, source: Path, target: Path) -> None:
    line = [str(source), "--target", str(target), "--out"]
    assert convert.main([*line, str(tmp_path / "out")]) == 0
    assert convert.main([*line, str(tmp_path / "out"), "--layers", "1", "2", "3"]) == 0
    assert head_checkpoint.load(tmp_path / "out")[0].config.feature_layers == (1, 2, 3)
    for taken in (target, source):
        with pytest.raises(UserError, match="other things in it"):
            convert.main([*line, str(taken)])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        convert.main([*line, str(tmp_path / "file")])


def test_a_full_disk_is_a_sentence(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As safetensors says it."""

    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_folder, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device"):
        convert.main([str(source), "--layers", "2", "6", "9", "--out", str(tmp_path / "out")])


def test_a_vocabulary_is_put_in_order(tmp_path: Path) -> None:
    """Its rows with it: places in it are searched for."""
    tensors = eagle3()
    there = torch.arange(DRAFT) + tensors["d2t"]
    turned = tensors | {"d2t": there.flip(0) - torch.arange(DRAFT), "lm_head.weight": tensors["lm_head.weight"].flip(0)}
    heads = []
    for name, given in (("ascending", tensors), ("descending", turned)):
        folder = write(tmp_path / name, given, LLAMA | {"draft_vocab_size": DRAFT})
        out = tmp_path / f"{name}-out"
        assert convert.main([str(folder), "--layers", "2", "6", "9", "--out", str(out)]) == 0
        heads.append(head_checkpoint.load(out)[0])
    assert torch.equal(heads[0].vocabulary, heads[1].vocabulary)
    assert torch.equal(heads[0].lm_head.weight, heads[1].lm_head.weight)


def test_mistakes_are_sentences(tmp_path: Path, source: Path) -> None:
    for line in (
        [str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")],
        [str(source), "--out", str(tmp_path / "out")],
        [str(source), "--target", str(tmp_path), "--out", str(tmp_path / "out")],
    ):
        with pytest.raises(UserError, match=r"[^\n]+\.$"):
            convert.main(line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [["--vocabulary", "0"], ["--layers", "-1"], []])
def test_mistakes_in_the_line(tmp_path: Path, extra: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        convert.main([str(tmp_path), *(["--out", "x", *extra] if extra else [])])
    assert caught.value.code == 2
