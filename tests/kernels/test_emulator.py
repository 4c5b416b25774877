"""What the emulator of csrc/sim notices: it must pass right kernels and stop wrong ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernels import emulated

pytestmark = pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulator with")

RIGHT = ("no_mistake", "warp_barrier", "atomics", "copies")
# Kernel -> what must be on stderr; nothing: the wrong result alone tells.
BY_ITSELF = {
    "wrong_barrier": "different __syncthreads()",
    "missing_thread": "a thread left the kernel",
    "absent_lanes": "deadlock",
    "no_wait": "never waited for",
    "misaligned": "not 16-byte aligned",
    "unwritten": "",
    "early_read": "",
}
OUT_OF_BOUNDS = ("outside_shared", "outside_global")
RACES = ("no_barrier", "shuffle_as_barrier", "two_blocks")


def program(folder: Path, *flags: str) -> Path:
    made = folder / "emulator_main"
    sources = [emulated.ROOT / "tests" / "kernels" / "emulator_main.cpp", emulated.CSRC / "sim" / "simt.cpp"]
    emulated.compile_all([([*emulated.FLAGS, *flags, *map(str, sources)], made)])
    return made


def run(made: Path, kernel: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(made), kernel], capture_output=True, text=True, check=False)


def test_by_itself(tmp_path: Path) -> None:
    made = program(tmp_path, "-O1")
    for kernel in RIGHT:
        assert run(made, kernel).returncode == 0, kernel
    for kernel, words in BY_ITSELF.items():
        done = run(made, kernel)
        assert done.returncode == (66 if words else 1), (kernel, done)
        assert words in done.stderr


@pytest.mark.slow
def test_with_address_sanitizer(tmp_path: Path) -> None:
    made = program(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for kernel in RIGHT:
        done = run(made, kernel)
        assert (done.returncode, done.stderr) == (0, ""), kernel
    for kernel in OUT_OF_BOUNDS:
        assert "heap-buffer-overflow" in run(made, kernel).stderr, kernel


@pytest.mark.slow
def test_with_thread_sanitizer(tmp_path: Path) -> None:
    made = program(tmp_path, "-O1", "-g", "-fsanitize=thread")
    for kernel in RIGHT:
        done = run(made, kernel)
        assert (done.returncode, done.stderr) == (0, ""), kernel
    for kernel in RACES:
        assert "data race" in run(made, kernel).stderr, kernel
