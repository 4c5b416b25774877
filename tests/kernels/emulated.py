"""The GPU kernels as a library for the CPU: the same sources, compiled by g++ with the emulator of csrc/sim.

The library registers the same operators as the product, under `torch.ops.vllm_specvlm_emulated` and for CPU tensors.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vllm_specvlm.ops.library import register_fakes

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
CXX = shutil.which(os.environ.get("CXX", "g++"))
CMAKE = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
KERNELS = ("launch", "attention_float", "attention_half", "attention_bfloat16", "wrappers")
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def compile_all(jobs: Sequence[tuple[list[str], Path]]) -> None:
    """Runs the compiler for each (arguments, target), as many at once as there are CPUs."""

    def run(job: tuple[list[str], Path]) -> None:
        arguments, target = job
        command = [str(CXX), *arguments, "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # warnings

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(run, jobs))


def kernel_jobs(
    csrc: Path, folder: Path, flags: Sequence[str], kernels: Sequence[str] = KERNELS
) -> list[tuple[list[str], Path]]:
    """How to compile the kernels and the emulator of `csrc` into object files in `folder`."""
    jobs = [
        ([*FLAGS, *flags, "-x", "c++", "-c", str(csrc / "gpu" / f"{name}.cu")], folder / f"{name}.o")
        for name in kernels
    ]
    return [*jobs, ([*FLAGS, *flags, "-c", str(csrc / "sim" / "simt.cpp")], folder / "simt.o")]


@functools.cache
def library() -> ctypes.CDLL:
    """Builds the library, unless it was built from the same sources before, and loads its operators."""
    path = _build()
    torch.ops.load_library(str(path))
    register_fakes("vllm_specvlm_emulated")
    return ctypes.CDLL(str(path))


def schedule(seed: int) -> None:
    """Run the blocks and threads of later launches in another order; 0: in the order of their numbers."""
    library().specvlm_simt_seed(ctypes.c_uint64(seed))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0 and "warning:" not in done.stdout, done.stdout


def _build() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    assert CMAKE is not None, "The emulated kernels are built by cmake: pip install cmake ninja."
    digest = hashlib.sha256(torch.__version__.encode() + Path(__file__).read_bytes())
    for file in sorted(CSRC.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    target = ROOT / "build" / "emulated" / f"{digest.hexdigest()[:16]}.so"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        settings = ["-G", "Ninja"] if shutil.which("ninja") else []
        settings += [f"-DCMAKE_CXX_COMPILER={CXX}", f"-DTORCH_FOLDER={Path(found.origin).parent}"]
        _run([str(CMAKE), "-S", str(CSRC), "-B", name, *settings])
        _run([str(CMAKE), "--build", name, "--target", "specvlm_emulated", "--parallel", str(os.cpu_count() or 1)])
        shutil.copy2(Path(name) / "libspecvlm_emulated.so", target.with_suffix(f".{os.getpid()}"))
    target.with_suffix(f".{os.getpid()}").replace(target)
    return target
