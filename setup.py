"""Builds the native libraries of vllm_specvlm; everything else about the package is in pyproject.toml.

libspecvlm.so needs g++ alone. libspecvlm_cuda.so, the GPU kernels, is built too where nvcc is found and the installed
torch is a CUDA build, or where TORCH_CUDA_ARCH_LIST asks for it; with that variable set but empty it is left out.

The libraries hold no CPython symbols (torch ops are registered through torch's stable ABI), so one wheel serves every
Python 3: py3-none-linux_<machine>.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
LIBRARY = Path("vllm_specvlm") / "ops" / "_lib" / "libspecvlm.so"
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")
CUDA_LIBRARY = LIBRARY.with_name("libspecvlm_cuda.so")

COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
# The kernels spell out every rounding: the compiler may not fuse a product and a sum by itself.
KERNEL = ["-ffp-contract=off", "-fno-math-errno", "-fno-exceptions", "-fno-rtti", "-Wno-uninitialized"]
VARIANTS = {
    "portable": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}
# torch 2.10 is the oldest release whose stable ABI has all that csrc/torch uses.
TORCH = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]

# What the kernels are compiled for unless TORCH_CUDA_ARCH_LIST says otherwise, as far as nvcc knows it.
CUDA_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]
CUDA = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def torch_include() -> Path:
    """The folder of torch's headers, found without importing torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("vllm_specvlm: torch is not installed here, install torch>=2.13 first.")
    include = Path(found.origin).parent / "include"
    if not (include / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise SystemExit(f"vllm_specvlm: {include} lacks torch's stable ABI headers, install torch>=2.13.")
    return include


def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else c++."""
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++"]:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"vllm_specvlm: no C++ compiler {asked or 'g++'} found, install g++ 12 or newer or set CXX.")


def commands(cxx: str, objects: Path) -> dict[Path, list[str]]:
    """Object file -> the command that makes it."""
    made = {}
    if platform.machine() not in ("x86_64", "AMD64"):
        raise SystemExit(f"vllm_specvlm: the CPU kernels need x86-64, this machine is {platform.machine()}.")
    for name, flags in VARIANTS.items():
        target = objects / f"tree_attention_{name}.o"
        source = str(SOURCES / "cpu" / "tree_attention.cpp")
        made[target] = [cxx, *COMMON, *KERNEL, *flags, f"-DSPECVLM_VARIANT={name}", "-c", source]
    for source_path in (SOURCES / "cpu" / "dispatch.cpp", SOURCES / "common" / "plan.cpp"):
        made[objects / f"{source_path.stem}.o"] = [cxx, *COMMON, "-c", str(source_path)]
    include = ["-isystem", str(torch_include())]
    for name in ("ops", "gpu_ops"):
        made[objects / f"{name}.o"] = [cxx, *COMMON, *TORCH, *include, "-c", str(SOURCES / "torch" / f"{name}.cpp")]
    return {target: [*command, "-o", str(target)] for target, command in made.items()}


def nvcc() -> str | None:
    """The CUDA compiler: that of $CUDA_HOME, else the one on the path."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


def cuda_architectures() -> list[str]:
    """What the GPU kernels are to be compiled for, as in TORCH_CUDA_ARCH_LIST; nothing: they are left out."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if wanted is not None:
        if wanted.split() and nvcc() is None:
            raise SystemExit(
                "vllm_specvlm: TORCH_CUDA_ARCH_LIST is set but there is no nvcc, install CUDA or unset it."
            )
        return re.split(r"[;, ]+", wanted.strip()) if wanted.split() else []
    version = torch_include().parent / "version.py"
    if nvcc() is None or not re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE):
        return []
    listed = subprocess.run([str(nvcc()), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = [a for a in CUDA_ARCHITECTURES if f"compute_{a.removesuffix('+PTX').replace('.', '')}" in listed.split()]
    return known if not known or known[-1].endswith("+PTX") else [*known[:-1], f"{known[-1]}+PTX"]


def cuda_code(architectures: list[str]) -> list[str]:
    """nvcc's options for these architectures: machine code for each, and PTX where "+PTX" asks for it."""
    options = []
    for name in architectures:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise SystemExit(f"vllm_specvlm: {name!r} in TORCH_CUDA_ARCH_LIST is not like 9.0 or 9.0+PTX.")
        if int(parts[1]) < 8:
            raise SystemExit(f"vllm_specvlm: the CUDA kernels need compute capability 8.0, not {name}.")
        number = parts[1] + parts[2] + parts[3]
        options += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if parts[4]:
            options += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return options


def cuda_commands(objects: Path) -> dict[Path, list[str]]:
    """Object file -> the command that makes it; empty where the GPU kernels are left out."""
    code = cuda_code(cuda_architectures())
    sources = sorted((SOURCES / "gpu").glob("*.cu")) if code else []
    begin = [str(nvcc()), *CUDA, "-ccbin", compiler(), *code, "-c"]
    return {objects / f"{p.stem}.cuda.o": [*begin, str(p), "-o", str(objects / f"{p.stem}.cuda.o")] for p in sources}


def run(command: list[str]) -> None:
    """Runs one compiler command, stopping the build with the compiler's own words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stdout or done.stderr:
        print(done.stdout + done.stderr, file=sys.stderr)
    if done.returncode:
        raise SystemExit("vllm_specvlm: compiling failed: " + " ".join(command))


def fingerprint(recipe: dict[Path, list[str]]) -> str:
    """Hash of everything the library is made from: this file, sources, commands, torch's version."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in SUFFIXES:
            digest.update(path.name.encode() + path.read_bytes())
    include = str(torch_include())  # a build environment of pip's has a new path every time
    for command in recipe.values():
        digest.update(" ".join(word for word in command[:-1] if word != include).encode())
    version = torch_include().parent / "version.py"
    digest.update(version.read_bytes() if version.is_file() else b"")
    return digest.hexdigest()


def build(objects: Path, library: Path, recipe: dict[Path, list[str]], linker: list[str], end: list[str]) -> None:
    """Compiles `recipe`, unless that was done before in `objects`, and links `library`; `end` follows the objects."""
    stamp, wanted = objects / f"{library.stem}.fingerprint", fingerprint(recipe)
    made = objects / library.name
    if not (made.is_file() and stamp.is_file() and stamp.read_text() == wanted):
        objects.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(run, recipe.values()))
        run([*linker, "-shared", "-o", str(made), *map(str, recipe), *end])
        stamp.write_text(wanted)
    library.parent.mkdir(parents=True, exist_ok=True)
    beside = library.with_name(f"{library.name}.{os.getpid()}")
    shutil.copy2(made, beside)
    beside.replace(library)  # never write into a library that a running process has mapped


def build_all(objects: Path, package_root: Path) -> None:
    """Builds the libraries into the package below `package_root`."""
    gpu = cuda_commands(objects)
    # No rpath: torch is always loaded before this library, which then shares the loaded one.
    end = ["-s", "-Wl,--as-needed", "-L", str(torch_include().parent / "lib"), "-ltorch_cpu", "-ldl"]
    build(objects, package_root / LIBRARY, commands(compiler(), objects), [compiler()], end)
    if gpu:
        build(objects, package_root / CUDA_LIBRARY, gpu, [str(nvcc()), "-cudart", "static"], ["-Xlinker", "-s"])
    else:
        (package_root / CUDA_LIBRARY).unlink(missing_ok=True)


class BuildLibrary(build_ext):
    """`build_ext` whose one extension is the native library, put inside the package (or beside it with --inplace)."""

    def finalize_options(self) -> None:
        # Object files outlive the temporary folders of pip, unless --build-temp says otherwise.
        self.objects = Path(self.build_temp or ROOT / "build").resolve() / "specvlm"
        super().finalize_options()

    def run(self) -> None:
        package_root = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        build_all(self.objects, package_root)

    def get_outputs(self) -> list[str]:
        made = [Path(self.build_lib) / library for library in (LIBRARY, CUDA_LIBRARY)]
        return [] if self.inplace else [str(path) for path in made if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted(SOURCES.rglob("*")) if p.suffix in SUFFIXES]


class AnyPythonWheel(bdist_wheel):
    """A wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    """Says that the package is not pure Python."""

    def has_ext_modules(self) -> bool:
        return True


COMMANDS: dict[str, Callable[..., Any]] = {"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel}

setup(
    distclass=Binary,
    cmdclass=COMMANDS,
    ext_modules=[Extension("vllm_specvlm.ops._lib.libspecvlm", sources=[])],
)
