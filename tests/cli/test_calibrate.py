"""`specvlm calibrate`: mistakes, the simulation's table; slow tests run it for real on a tiny pair."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vllm_specvlm.cli import calibrate, comparison
from vllm_specvlm.cli.console import UserError
from vllm_specvlm.cli.progress import Progress
from vllm_specvlm.draft.exit_config import ExitConfig, as_json
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.schedule import trace
from vllm_specvlm.schedule.cost_curve import CostCurve
from vllm_specvlm.schedule.costs import Costs
from vllm_specvlm.schedule.profile import Profile, ProfileKey
from vllm_specvlm.schedule.trace import RecordedTree, TracedRequest

KEY = ProfileKey("target@1", "draft@2", "float32", "eager", 1, "a CPU", 2, "0.32.0", "2.13.0", "0.1.0")


def some_profile() -> Profile:
    flat = CostCurve({1: 0.010, 8192: 0.010})
    flat.observe(4, 0.010)
    return Profile(
        KEY, Costs(flat, flat, CostCurve({1: 0.001, 8192: 0.001}), CostCurve({1: 0.001, 8192: 0.001})), 0.0005
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A profile of free rows, and a trace of one long answer whose chains of four are always right."""
    profile, recorded = tmp_path / "profile.json", tmp_path / "trace.jsonl"
    some_profile().save(profile)
    trees = [RecordedTree(at, (-1, 0, 1, 2), (-0.05,) * 4, tuple(range(min(4, 101 - at)))) for at in range(1, 101)]
    trace.write(recorded, [TracedRequest(prompt=8, tokens=101, trees=tuple(trees), prompt_seconds=0.010)])
    return profile, recorded


def test_simulation(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    profile, recorded = files
    line = ["--simulate", str(recorded), "--profile", str(profile), "--concurrency", "1", "2"]
    assert calibrate.main([*line, "--policies", "plain", "chain-4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [(row["concurrency"], row["policy"]) for row in found] == [
        (1, "plain"),
        (1, "chain-4"),
        (2, "plain"),
        (2, "chain-4"),
    ]
    assert found[0]["tokens_per_s"] == 100.0  # 10 ms a token
    assert found[1]["tokens_per_s"] == pytest.approx(101 / (0.010 + 20 * 0.0145), abs=0.01)
    assert found[1]["acceptance_length"] == 5.0
    assert found[2]["tokens_per_s"] == 200.0
    assert calibrate.main([*line, "--policies", "plain", "chain-4"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split() == ["1", "100.0", "336.7*"]
    assert calibrate.main([*line, "--nodes", "16"]) == 0
    assert "planned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--policies", "eagle"], "no policy 'eagle'"),
        (["--profile", "/nowhere/profile.json"], "cannot be read"),
        (["--nodes", "200"], "must be 1 to 127"),
    ],
)
def test_mistakes_of_a_simulation(files: tuple[Path, Path], more: list[str], says: str) -> None:
    profile, recorded = files
    with pytest.raises(UserError, match=says):
        calibrate.main(["--simulate", str(recorded), "--profile", str(profile), *more])


def test_a_trace_that_is_none(files: tuple[Path, Path]) -> None:
    profile, _ = files
    with pytest.raises(UserError, match="Line 1"):
        calibrate.main(["--simulate", str(profile), "--profile", str(profile)])


def test_a_place_that_cannot_be_written_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "measure", lambda options: pytest.fail("an engine was started"))
    with pytest.raises(UserError, match="no folder"):
        calibrate.main(["--out", str(tmp_path / "nowhere" / "p.json")])
    with pytest.raises(UserError, match="is a folder"):
        calibrate.main(["--out", str(tmp_path)])
    with pytest.raises(UserError, match="cannot be written"):
        calibrate.main(["--out", "/proc/specvlm-profile.json"])


@pytest.mark.parametrize("option", ["--target", "--draft"])
def test_a_model_that_is_none(models: dict[str, str], tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"{option} {tmp_path} is not the folder of a model"):
        calibrate.main([option, str(tmp_path), "--out", str(tmp_path / "p.json")])


def test_ctrl_c_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(options: object) -> Profile:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "measure", stopped)
    assert calibrate.main(["--out", str(tmp_path / "p.json")]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "measure", lambda options: some_profile())
    path = tmp_path / "p.json"
    assert calibrate.main(["--out", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == ["4", "10.00", "(1)", "10.00", "(1)", "1.00", "1.00", "1.00x"]
    assert str(path) in said.err
    assert Profile.load(path, KEY).as_dict() == some_profile().as_dict()


def checkpoint(folder: Path, held_out: float, layers: int | None = None) -> str:
    """As `specvlm train` leaves it, without weights."""
    folder.mkdir(parents=True)
    told = {"held_out": {"chain": str(held_out)}, "recipe": {"check": {"chain": 5}}}
    (folder / "provenance.json").write_text(json.dumps(told))
    (folder / "config.json").write_text("{}")
    if layers is not None:
        network = ExitConfig(8, layers, 1, 8, 32, 16)
        target = TargetId("a target", "llava", 8, 4, 32)
        (folder / "config.json").write_text(json.dumps(as_json(network, target)))
    return str(folder)


def test_exits_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passes of two layers take twice as long and are right more often: here one layer is the better choice."""
    flat = CostCurve({1: 0.010, 8192: 0.010})
    layer = {"one": 0.001, "two": 0.008}

    def measure(draft: str) -> Profile:
        level = CostCurve({1: layer[Path(draft).parent.name], 8192: layer[Path(draft).parent.name]})
        return Profile(KEY, Costs(flat, flat, level, level), 0.0005)

    asked: list[list[str]] = []
    monkeypatch.setattr(comparison, "measured_apart", lambda arguments: asked.append(list(arguments)) or measure)
    exits = [checkpoint(tmp_path / name / "step-000004", held_out, layers) for name, held_out, layers in EXITS]
    assert calibrate.main(["--compare", *exits, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["drafter"], row["layers"]) for row in rows] == [("one/step-000004", 1), ("two/step-000004", 2)]
    assert rows[0]["speedup"] > 1.2 > rows[1]["speedup"]
    assert rows[0]["passes_ms"] == pytest.approx(rows[0]["depth"] * 1.0)
    assert "--batch" in asked[0] and asked[0][asked[0].index("--batch") + 1] == "1"
    assert calibrate.main(["--compare", *exits]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "*" in line] == ["one/step-000004"]


EXITS = (("one", 1.75, 1), ("two", 1.9, 2))


def test_a_draft_that_was_never_checked_cannot_be_compared(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no provenance\.json with a held-out check"):
        calibrate.main(["--compare", str(tmp_path)])


@pytest.mark.slow  # two processes with engines
def test_comparing_tiny_exits(tmp_path: Path) -> None:
    from tests.exactness.engines import target_of
    from tests.tiny.exits import build_exit

    folder = tmp_path / "exit-1"
    shutil.copytree(build_exit("llava"), folder)
    told = {"held_out": {"chain": "1.5"}, "recipe": {"check": {"chain": 5}}}
    (folder / "provenance.json").write_text(json.dumps(told))
    line = ["calibrate", "--target", str(target_of("llava")), "--compare", str(folder), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "vllm_specvlm.cli", *line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (row,) = json.loads(done.stdout)["rows"]
    assert row["layers"] == 1 and row["held_out"] == 1.5
    assert min(row[name] for name in ("plain_ms", "check_ms", "passes_ms", "level_ms", "overhead_ms", "speedup")) > 0


def test_sizes_end_at_the_batch_asked_for() -> None:
    assert calibrate.grid(16, quick=False).batches == [1, 2, 4, 8, 16]
    assert calibrate.grid(12, quick=False).batches == [1, 2, 4, 8, 12]
    assert calibrate.grid(1, quick=True).batches == [1]
    assert calibrate.grid(2, quick=True).batches == [1, 2]
    assert calibrate.grid(16, quick=True).batches == [1, 4, 16]


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("measuring")
    now[0] += 30
    progress.show(0.25, "the first")
    now[0] += 1
    progress.show(0.3, "too soon for another line")
    now[0] += 89
    progress.show(1.0, "done")
    progress.end()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "measuring [######..................]  25%  1:30 left   the first"
    assert last.endswith("100%  2:00        done")


def _command(*more: str) -> list[str]:
    from tests.exactness.engines import target_of

    model = str(target_of("llava"))
    return [sys.executable, "-m", "vllm_specvlm.cli", "calibrate", "--target", model, "--draft", model, *more]


@pytest.mark.slow  # a process of its own with an engine
def test_calibrating_a_tiny_pair(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    done = subprocess.run(
        _command("--quick", "--batch", "2", "--json", "--out", str(path)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed == json.loads(path.read_text())
    assert printed["key"]["draft"] == printed["key"]["model"]
    costs = Profile.load(path).costs
    assert costs.plain.seen(1) and costs.plain.seen(2) and costs.tree.seen(17) and costs.draft.seen(4)
    assert "100%" in done.stderr


@pytest.mark.slow  # as above
def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    words = tmp_path / "stderr.txt"
    with words.open("w") as stderr:
        # Not --quick: there is time to stop it.
        process = subprocess.Popen(
            _command("--batch", "64", "--out", str(tmp_path / "p.json")),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        for _ in range(600):
            if "calibrating [" in words.read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, words.read_text()[-2000:]
    assert "nothing was written" in words.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["stderr.txt"]


def test_contexts_may_be_those_of_the_traffic() -> None:
    assert tuple(calibrate.grid(4, quick=False).contexts) == (128, 768)
    assert list(calibrate.grid(4, quick=False, contexts=[300, 96, 300]).contexts) == [96, 300]
    assert list(calibrate.grid(4, quick=True, contexts=[300, 96]).contexts) == [96]
