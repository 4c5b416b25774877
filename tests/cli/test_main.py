"""The dispatcher: help, version and mistakes, without loading anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import vllm_specvlm
from vllm_specvlm.cli import main as cli
from vllm_specvlm.cli.console import UserError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_specvlm.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


def test_no_arguments_prints_the_help() -> None:
    assert run().stdout == run("--help").stdout


def test_version() -> None:
    assert run("--version").stdout.split() == ["specvlm", vllm_specvlm.__version__]


def test_an_unknown_command_is_a_mistake() -> None:
    done = run("sreve")
    assert done.returncode == 2
    assert "'sreve'" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("arguments", [[], ["demo"], ["doctor"], ["calibrate"], ["convert"]])
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import json, sys
from vllm_specvlm.cli.main import main
try:
    main({[*arguments, "--help"]})
except SystemExit:
    pass
print(json.dumps([name for name in ("torch", "vllm", "transformers", "numpy") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_user_error_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm_specvlm.cli import doctor

    def mistaken(argv: list[str]) -> int:
        raise UserError(f"{argv} is wrong: do better.")

    monkeypatch.setattr(doctor, "main", mistaken)
    assert cli.main(["doctor", "x"]) == 2
    assert capsys.readouterr().err == "specvlm doctor: ['x'] is wrong: do better.\n"


def test_the_rest_of_the_line_reaches_the_command_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_specvlm.cli import serve

    seen: list[list[str]] = []
    monkeypatch.setattr(serve, "main", lambda argv: seen.append(list(argv)) or 7)
    assert cli.main(["serve", "--help", "--version", "-x", "demo"]) == 7
    assert seen == [["--help", "--version", "-x", "demo"]]
