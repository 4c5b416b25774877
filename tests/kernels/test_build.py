"""The native code as built: sanitizers, symbols, and the build itself."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels import emulated

TORCH = Path(torch.__file__).parent
ROOT = Path(__file__).parents[2]
CXX = shutil.which(os.environ.get("CXX", "g++"))
VARIANTS = {
    "portable": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}
FLAGS = ["-std=c++20", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-w"]

needs_compiler = pytest.mark.skipif(CXX is None, reason="no C++ compiler")


def compile_kernels(folder: Path, flags: list[str]) -> list[str]:
    """Object files of all variants."""
    running = []
    for name, machine in VARIANTS.items():
        target = folder / f"{name}.o"
        source = ROOT / "csrc" / "cpu" / "tree_attention.cpp"
        command = [
            str(CXX),
            *FLAGS,
            *flags,
            *machine,
            f"-DSPECVLM_VARIANT={name}",
            "-c",
            str(source),
            "-o",
            str(target),
        ]
        running.append((target, subprocess.Popen(command)))
    assert all(process.wait() == 0 for _, process in running)
    return [str(target) for target, _ in running]


@needs_compiler
@pytest.mark.slow
def test_sanitizers(tmp_path: Path) -> None:
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = compile_kernels(tmp_path, flags)
    sources = [ROOT / "csrc" / "cpu" / "dispatch.cpp", ROOT / "csrc" / "common" / "plan.cpp"]
    main = ROOT / "tests" / "kernels" / "sanitizer_main.cpp"
    program = tmp_path / "sanitizer_main"
    subprocess.run(
        [str(CXX), "-std=c++20", *flags, str(main), *map(str, sources), *objects, "-o", str(program)], check=True
    )
    done = subprocess.run([str(program), "5"], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("ok\n"), done.stdout + done.stderr[-4000:]
    control = subprocess.run([str(program), "5", "short"], capture_output=True, text=True, check=False)
    assert "heap-buffer-overflow" in control.stderr


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_variants_share_no_code(tmp_path: Path) -> None:
    """A function that two variants define by one name could be taken from the wrong one by the linker."""
    for path in compile_kernels(tmp_path, ["-O3"]):
        listing = subprocess.run(
            ["nm", "--defined-only", "-g", path], capture_output=True, text=True, check=True
        ).stdout
        symbols = [line.split()[-1] for line in listing.splitlines()]
        assert symbols == [f"specvlm_cpu_variant_{Path(path).stem}"]


def build_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", *arguments],
        cwd=ROOT,
        env=os.environ | {"TORCH_CUDA_ARCH_LIST": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_compiler_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = build_command("-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp"), CXX="no-such-compiler")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("vllm_specvlm: no C++ compiler no-such-compiler found, install g++")


@pytest.mark.parametrize(
    ("missing", "says"),
    [({"cmake"}, "there is no cmake, run pip install cmake"), ({"ninja", "make"}, "neither ninja nor make is there")],
)
def test_no_cmake_is_said_in_one_sentence(missing: set[str], says: str, tmp_path: Path) -> None:
    program = (
        "import runpy, shutil, sys\n"
        "found = shutil.which\n"
        f"shutil.which = lambda name, **more: None if name in {missing} else found(name, **more)\n"
        f"sys.argv = ['setup.py', 'build_ext', '-b', {str(tmp_path / 'lib')!r}, '-t', {str(tmp_path / 'temp')!r}]\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"vllm_specvlm: {says}")


@needs_compiler
@pytest.mark.skipif(emulated.CMAKE is None, reason="no cmake")
def test_flags_are_the_projects_own(tmp_path: Path) -> None:
    """Bits depend on them: neither the environment nor a type of build of CMake's adds any."""
    command = [str(emulated.CMAKE), "-S", str(ROOT / "csrc"), "-B", str(tmp_path), f"-DTORCH_FOLDER={TORCH}"]
    options = ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CXX_COMPILER={CXX}"]
    flags = {"CXXFLAGS": "-ffast-math -march=native", "LDFLAGS": "-Wl,-z,now"}
    subprocess.run([*command, *options], env=os.environ | flags, capture_output=True, check=True)
    common = "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-maybe-uninitialized"
    kernel = "-ffp-contract=off -fno-math-errno -fno-exceptions -fno-rtti -Wno-uninitialized"
    found = {}
    for each in json.loads((tmp_path / "compile_commands.json").read_text()):
        words = each["command"].split()
        found[words[words.index("-o") + 1].split("/")[1].removesuffix(".dir")] = words[1 : words.index("-o")]
    for name, machine in VARIANTS.items():
        wanted = [*common.split(), *kernel.split(), *machine, f"-DSPECVLM_VARIANT={name}"]
        assert found[f"tree_attention_{name}"] == wanted
    assert found["plain"] == common.split()
    assert [word for word in found["binding"] if word not in common.split()] == [
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", f"{TORCH}/include")
    ]
    assert "-ffp-contract=off" in found["emulated_kernels"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("7.5", "need compute capability 8.0, not 7.5."), ("Hopper", "'Hopper' in TORCH_CUDA_ARCH_LIST is not like 9.0")],
)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_wrong_cuda_architectures(tmp_path: Path, wanted: str, words: str) -> None:
    done = build_command("-b", str(tmp_path / "lib"), TORCH_CUDA_ARCH_LIST=wanted)
    assert done.returncode != 0
    assert words in done.stderr.splitlines()[-1]


def test_no_nvcc_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = build_command("-b", str(tmp_path / "lib"), TORCH_CUDA_ARCH_LIST="9.0", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("vllm_specvlm: TORCH_CUDA_ARCH_LIST is set but there is no nvcc")


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_cuda_library(tmp_path: Path) -> None:
    """It is built when asked for, loads without a GPU, and then says so; a build without it takes it away."""
    arguments = ("-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp"))
    done = build_command(*arguments, TORCH_CUDA_ARCH_LIST="9.0+PTX")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "lib" / "vllm_specvlm" / "ops" / "_lib" / "libspecvlm_cuda.so"
    library = ctypes.CDLL(str(path))
    assert library.specvlm_gpu_abi() == 1
    sizes = [size for size in range(0, 272, 16) if library.specvlm_gpu_has_head_size(size)]
    assert sizes == [64, 80, 96, 128, 256]
    library.specvlm_gpu_message.restype = ctypes.c_char_p
    assert b"driver" in library.specvlm_gpu_message(35)
    needed = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needed and "cudart" not in needed
    assert build_command(*arguments).returncode == 0
    assert not path.exists()


@needs_compiler
@pytest.mark.slow
def test_a_second_build_compiles_nothing(tmp_path: Path) -> None:
    arguments = ("-b", str(tmp_path / "lib"), "-t", str(tmp_path / "temp"))
    assert build_command(*arguments).returncode == 0
    library = tmp_path / "lib" / "vllm_specvlm" / "ops" / "_lib" / "libspecvlm.so"
    objects = {path: path.stat().st_mtime_ns for path in (tmp_path / "temp").rglob("*.o")}
    assert library.is_file() and len(objects) == 8
    assert build_command(*arguments).returncode == 0
    assert objects == {path: path.stat().st_mtime_ns for path in (tmp_path / "temp").rglob("*.o")}
