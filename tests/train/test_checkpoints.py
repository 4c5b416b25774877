"""Checkpoints under real faults: a killed process, a full disk, truncated files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.made import head
from vllm_specvlm.draft import checkpoint_folder, head_checkpoint, head_config
from vllm_specvlm.draft.head_config import TargetId
from vllm_specvlm.train.checkpoints import STATE, Checkpoints
from vllm_specvlm.train.errors import TrainingError
from vllm_specvlm.train.head_student import HeadStudent

TARGET = TargetId("t", "llava", 16, 2, 40)


def save(folder: Path, step: int, keep: int = 3) -> Path:
    return Checkpoints(folder, keep, HeadStudent()).save(step, head(seed=step), TARGET, {"step": step}, {"step": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saved_and_read(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-000002", "step-000003"]
    saved, damaged = Checkpoints(tmp_path, 2, HeadStudent()).last()
    assert saved is not None and not damaged
    assert (saved.step, saved.state, saved.target) == (3, {"step": 3}, TARGET)
    assert torch.equal(saved.network.q_proj.weight, head(seed=3).q_proj.weight)
    assert head_config.is_head(tmp_path / "step-000003")


@pytest.mark.parametrize("name", [STATE, "model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_ones_are_passed_over(tmp_path: Path, name: str, share: float) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "step-000002" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    saved, damaged = Checkpoints(tmp_path, 3, HeadStudent()).last()
    assert saved is not None and saved.step == 1
    assert len(damaged) == 1 and "step-000002 is damaged" in damaged[0] and "\n" not in damaged[0]
    # Going on from step 1 saves step 2 again.
    save(tmp_path, 2)
    again, damaged = Checkpoints(tmp_path, 3, HeadStudent()).last()
    assert again is not None and again.step == 2 and not damaged


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """They are not saved; where they lie already, they are passed over."""
    save(tmp_path, 1)
    network = head(seed=2)
    with torch.no_grad():
        network.q_proj.weight[0, 0] = float("nan")
    mine = Checkpoints(tmp_path, 3, HeadStudent())
    with pytest.raises(TrainingError, match=r"After step 2 the weights are no finite numbers .*step-000001"):
        mine.save(2, network, TARGET, {}, {})
    assert names(tmp_path) == ["step-000001"]
    path = save(tmp_path, 3) / "model.safetensors"
    save_file(load_file(path) | {"q_proj.weight": network.q_proj.weight.detach()}, path)
    saved, damaged = mine.last()
    assert saved is not None and saved.step == 1
    assert len(damaged) == 1 and "no finite numbers" in damaged[0]


def test_a_missing_file_is_damage_too(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-000001" / STATE).unlink()
    saved, damaged = Checkpoints(tmp_path, 3, HeadStudent()).last()
    assert saved is None and "No such file" in damaged[0]


class _Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def test_a_state_that_would_run_something(tmp_path: Path) -> None:
    """It is damage like any other: nothing of it runs."""
    mark = tmp_path / "mark"
    run = tmp_path / "run"
    save(run, 1)
    torch.save({"step": 2, "optimizer": _Bomb(mark)}, save(run, 2) / STATE)
    saved, damaged = Checkpoints(run, 3, HeadStudent()).last()
    assert saved is not None and saved.step == 1 and "step-000002 is damaged" in damaged[0]
    assert not mark.exists()
    torch.load(run / "step-000002" / STATE, weights_only=False)  # a control: it would have worked
    assert mark.exists()


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes of the state really fail: the kernel says that there is no space."""
    saved = head_checkpoint.save

    def with_full_state(folder: Path, *rest: Any) -> None:
        saved(folder, *rest)
        (folder / STATE).symlink_to("/dev/full")

    monkeypatch.setattr(head_checkpoint, "save", with_full_state)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patched:
        fill_disk(patched)
        with pytest.raises(TrainingError) as error:
            save(tmp_path, 2)
    assert "No space left on device" in str(error.value) and "step-000001" in str(error.value)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["step-000001"]
    saved, damaged = Checkpoints(tmp_path, 3, HeadStudent()).last()
    assert saved is not None and saved.step == 1 and not damaged


def test_a_full_disk_while_the_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_folder, "save_file", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.train.test_checkpoints import save
from vllm_specvlm.train import checkpoints
folder, moment = Path(sys.argv[1]), sys.argv[2]
save(folder, 1)
if moment == "exchange":
    (save(folder, 2) / checkpoints.STATE).write_bytes(b"damaged")
write = checkpoints.write_state

def half(path, state):
    write(path, state)
    path.write_bytes(path.read_bytes()[:100])
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "state":
    checkpoints.write_state = half
else:
    rename = Path.rename

    def killed(self, to):
        if self.name == ".step-000002.partial":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, to)

    Path.rename = killed
save(folder, 2)
"""


@pytest.mark.parametrize("moment", ["state", "rename"])
def test_killed_in_a_save(tmp_path: Path, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), moment], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -9
    assert names(tmp_path) == [".step-000002.partial", "step-000001"]
    mine = Checkpoints(tmp_path, 3, HeadStudent())
    mine.clean()
    assert names(tmp_path) == ["step-000001"]
    saved, damaged = mine.last()
    assert saved is not None and saved.step == 1 and not damaged


def test_killed_in_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    """Between two renames, when neither the damaged one nor its successor has the name: the successor gets it."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), "exchange"], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -9
    assert names(tmp_path) == [".step-000002.old", ".step-000002.partial", "step-000001"]
    mine = Checkpoints(tmp_path, 3, HeadStudent())
    mine.clean()
    assert names(tmp_path) == ["step-000001", "step-000002"]
    saved, damaged = mine.last()
    assert saved is not None and saved.step == 2 and not damaged
    assert torch.equal(saved.network.q_proj.weight, head(seed=2).q_proj.weight)


def test_killed_while_a_drafter_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has its folder to itself: the old one is there again when the next writing begins, and if that fails."""

    def write(seed: int) -> None:
        head_checkpoint.save(tmp_path / "drafter", head(seed=seed), TARGET, {})

    write(1)
    (tmp_path / "drafter").rename(tmp_path / ".drafter.old")  # what a kill between the renames leaves

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_folder, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            write(2)
    loaded, _ = head_checkpoint.load(tmp_path / "drafter")
    assert torch.equal(loaded.q_proj.weight, head(seed=1).q_proj.weight)
    write(3)
    assert names(tmp_path) == ["drafter"]
