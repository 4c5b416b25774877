"""`specvlm train`: mistakes are one sentence, and a small run from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny.checkpoints import build
from vllm_specvlm.cli import main as cli
from vllm_specvlm.train import checkpoints

RECIPE = """
target = "{target}"
[[data]]
source = "specvlm/reference"
[answers]
longest = 8
batch = 4
[head]
vocabulary = 64
[training]
steps = {steps}
batch = 2
pool = 4
save_every = 2
log_every = 1
unroll = 2
longest = 512
[check]
every = 2
conversations = 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(target=build("llava"), steps=4))
    return path


def test_a_run_and_going_on(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["train", str(recipe), "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["step"] == 4 and float(told["held_out"]["chain"]) >= 1
    assert (Path(told["checkpoint"]) / "model.safetensors").is_file()
    assert cli.main(["train", str(recipe), "--out", out]) == 2
    assert "holds a run up to step 4: --resume goes on" in capsys.readouterr().err
    assert cli.main(["train", str(recipe), "--out", out, "--resume", "--steps", "6"]) == 0
    assert f"the drafter is in {out}/step-000006" in capsys.readouterr().err


def test_a_draft_of_the_targets_own_layers(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().replace("[head]\nvocabulary = 64", "[draft]\nlayers = 1"))
    assert cli.main(["train", str(recipe), "--out", str(tmp_path / "out"), "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out)["checkpoint"])
    assert json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"] == 1
    assert (folder / "tokenizer.json").is_file() and (folder / "processor_config.json").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nspeed = 1\n", "has no key 'speed'"),
        ("[[data]]\nsource = 'none.jsonl'\n", "none.jsonl' cannot be read"),
        ("[head]\nfeature_layers = [7]\n", "reads layer 7"),
        ("[draft]\nlayers = [1, 0]\n", "write a number above 0, or a list of layers"),
    ],
)
def test_mistakes(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    given = recipe.read_text()
    table = text.splitlines()[0]
    recipe.write_text(given.replace(table, text) if table in given and table != "[[data]]" else given + text)
    assert cli.main(["train", str(recipe), "--out", str(tmp_path / "out")]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specvlm train:")]
    assert len(told) == 1 and said in told[0]


@pytest.mark.slow
def test_torchrun_starts_one_run_in_several_processes(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "vllm_specvlm.cli", "train", str(recipe), "--out", str(out)]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=threads, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((out / "step-000004" / "provenance.json").read_text())["processes"] == 2
    assert done.stderr.count("the drafter is in") == 1  # one of them speaks
    assert len((out / "curve.csv").read_text().splitlines()) == 5  # and one writes


def test_nowhere_to_go(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(recipe)]) == 2
    assert "Neither --out nor 'out'" in capsys.readouterr().err


def start(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vllm_specvlm.cli", "train", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_leaves_whole_checkpoints_only(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.format(target=build("llava"), steps=100000))
    out = tmp_path / "out"
    # Shells let their background jobs ignore the signal, and children inherit that.
    run = start([str(recipe), "--out", str(out)], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 100
    while not (found := list(out.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130 and found
    assert "stopped; the last good one is step-" in told and "Traceback" not in told
    assert not list(out.glob(".*"))


def test_ctrl_c_in_the_middle_of_a_save(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoints.write_state

    def stopped_half_way(path: Path, state: Any) -> None:
        write(path, state)
        if "000004" in str(path):
            path.write_bytes(path.read_bytes()[:100])
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "out"
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "write_state", stopped_half_way)
            assert cli.main(["train", str(recipe), "--out", str(out)]) == 130
    finally:
        signal.signal(signal.SIGINT, usual)
    assert "stopped; the last good one is step-000002" in capsys.readouterr().err
    assert [path.name for path in out.iterdir() if "step" in path.name] == ["step-000002"]
    assert cli.main(["train", str(recipe), "--out", str(out), "--resume"]) == 0
    assert (out / "step-000004" / "model.safetensors").is_file()
