"""`specvlm selftest`: a report of what passed, what failed and what was not run, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_specvlm import ops
from vllm_specvlm.cli import selftest
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.selftest import attention, exactness
from vllm_specvlm.selftest.check import Check


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What needs one is said to be not run, which is no failure; the CPU's kernels are checked."""
    file = tmp_path / "report.json"
    assert selftest.main(["--quick", "--no-answers", "--report", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["ok"] is True
    by_outcome: dict[str, list[str]] = {}
    for check in report["checks"]:
        by_outcome.setdefault(check["outcome"], []).append(check["name"])
    assert set(by_outcome["not run"]) == {
        "PTX instructions",
        "CUDA kernels",
        "commit of accepted rows",
        "decisions on the GPU",
        "answers",
        "speed",
    }
    assert "failed" not in by_outcome
    assert "CPU kernel, bfloat16, heads of 64" in by_outcome["passed"]
    assert "walks on cpu" in by_outcome["passed"]
    assert report["machine"]["gpu"] is None
    assert "torch" in report["machine"]["versions"]
    said = capsys.readouterr().out
    assert "not run  CUDA kernels: there is no GPU" in said
    assert f"0 failed, 6 not run. The report is in {file}." in said


@pytest.mark.usefixtures("no_gpu", "models")
def test_answers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models: dict[str, str]
) -> None:
    asked: list[Any] = []

    def compared(*arguments: Any, **options: Any) -> list[Check]:
        asked.append((arguments, options))
        return [Check.judged("answers", False, "3 of 8 answers differ")]

    monkeypatch.setattr(exactness, "check", compared)
    monkeypatch.setattr(attention, "check", lambda *arguments: [])
    assert selftest.main(["--quick", "--json", "--report", str(tmp_path / "r.json")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    pair = (models["specvlm/reference-target"], models["specvlm/reference-draft"])
    assert asked == [((*pair, "float32"), {"eager_only": True, "quick": True, "verbose": False})]


def test_a_gpu_without_kernels_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_specvlm.selftest import decisions, machine, speed

    monkeypatch.setattr(machine, "gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(machine, "_gpu", lambda: {"name": "none"})
    monkeypatch.setattr(ops, "has_cuda_kernels", lambda: False)
    monkeypatch.setattr(attention, "check", lambda *arguments: [])
    monkeypatch.setattr(speed, "check", lambda *arguments, **options: [])
    monkeypatch.setattr(decisions, "check", lambda device: [Check.judged("decisions", device is None, "")])
    file = tmp_path / "report.json"
    assert selftest.main(["--quick", "--no-answers", "--report", str(file)]) == 1
    failed = [check["name"] for check in json.loads(file.read_text())["checks"] if check["outcome"] == "failed"]
    assert failed == ["PTX instructions", "CUDA kernels", "commit of accepted rows", "decisions on the GPU"]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        selftest.main(["--report", str(tmp_path / "nowhere" / "report.json")])
