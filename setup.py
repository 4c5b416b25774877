"""Builds the native libraries of vllm_specvlm with CMake (csrc/CMakeLists.txt); everything else about the package is in
pyproject.toml.

libspecvlm.so needs g++ alone. libspecvlm_cuda.so, the GPU kernels, is built too where nvcc is found and the installed
torch is a CUDA build, or where TORCH_CUDA_ARCH_LIST asks for it; with that variable set but empty it is left out.

The libraries hold no CPython symbols (torch ops are registered through torch's stable ABI), so one wheel serves every
Python 3: py3-none-linux_<machine>.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
LIBRARY = Path("vllm_specvlm") / "ops" / "_lib" / "libspecvlm.so"
CUDA_LIBRARY = LIBRARY.with_name("libspecvlm_cuda.so")

# What the kernels are compiled for unless TORCH_CUDA_ARCH_LIST says otherwise, as far as nvcc knows it.
CUDA_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]


def torch_folder() -> Path:
    """The package torch, found without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("vllm_specvlm: torch is not installed here, install torch>=2.10 first.")
    folder = Path(found.origin).parent
    if not (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise SystemExit(f"vllm_specvlm: {folder} lacks torch's stable ABI headers, install torch>=2.10.")
    return folder


def tool(name: str) -> str | None:
    """A program on the path, or beside this Python, where pip puts what its packages bring."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def compiler() -> str:
    """The C++ compiler: $CXX, else g++, else c++."""
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++"]:
        if path := shutil.which(name):
            return path
    raise SystemExit(f"vllm_specvlm: no C++ compiler {asked or 'g++'} found, install g++ 12 or newer or set CXX.")


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
    version = torch_folder() / "version.py"
    if nvcc() is None or not re.search(r"^cuda\b.*=\s*['\"]", version.read_text(), re.MULTILINE):
        return []
    listed = subprocess.run([str(nvcc()), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = [a for a in CUDA_ARCHITECTURES if f"compute_{a.removesuffix('+PTX').replace('.', '')}" in listed.split()]
    return known if not known or known[-1].endswith("+PTX") else [*known[:-1], f"{known[-1]}+PTX"]


def cuda_code(architectures: list[str]) -> list[str]:
    """As nvcc's -gencode takes it: machine code for each of these, and PTX where "+PTX" asks for it."""
    code = []
    for name in architectures:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise SystemExit(f"vllm_specvlm: {name!r} in TORCH_CUDA_ARCH_LIST is not like 9.0 or 9.0+PTX.")
        if int(parts[1]) < 8:
            raise SystemExit(f"vllm_specvlm: the CUDA kernels need compute capability 8.0, not {name}.")
        number = parts[1] + parts[2] + parts[3]
        code.append(f"arch=compute_{number},code=sm_{number}")
        if parts[4]:
            code.append(f"arch=compute_{number},code=compute_{number}")
    return code


def generator() -> list[str]:
    """CMake's options that name what runs the compilers: ninja, else make."""
    for name, kind in (("ninja", "Ninja"), ("make", "Unix Makefiles")):
        if path := tool(name):
            return ["-G", kind, f"-DCMAKE_MAKE_PROGRAM={path}"]
    raise SystemExit("vllm_specvlm: neither ninja nor make is there, run pip install ninja.")


def settings() -> list[str]:
    """CMake's options for this machine; what CMake kept from an earlier build does not count."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise SystemExit(f"vllm_specvlm: the CPU kernels need x86-64, this machine is {platform.machine()}.")
    code = cuda_code(cuda_architectures())
    return [
        *generator(),
        f"-DCMAKE_CXX_COMPILER={compiler()}",
        f"-DTORCH_FOLDER={torch_folder()}",
        f"-DCUDA_ARCHITECTURES={';'.join(code)}",
        f"-DNVCC={nvcc() if code else ''}",
    ]


def run(command: list[str]) -> None:
    """Runs CMake, stopping the build with the compiler's own words if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or "warning:" in done.stdout:
        print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise SystemExit("vllm_specvlm: compiling failed, see above: " + " ".join(command))


def build(objects: Path, package_root: Path) -> None:
    """Builds the libraries in `objects`, as far as they are not up to date, and puts them into the package."""
    cmake = tool("cmake")
    if cmake is None:
        raise SystemExit("vllm_specvlm: there is no cmake, run pip install cmake ninja.")
    run([cmake, "-S", str(SOURCES), "-B", str(objects), *settings()])
    run([cmake, "--build", str(objects), "--parallel", str(os.cpu_count() or 1)])
    for library in (LIBRARY, CUDA_LIBRARY):
        put(objects / library.name, package_root / library)


def put(made: Path, library: Path) -> None:
    """Copies a library into the package; one that was not made is taken away there."""
    if not made.is_file():
        library.unlink(missing_ok=True)
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    beside = library.with_name(f"{library.name}.{os.getpid()}")
    shutil.copy2(made, beside)
    beside.replace(library)  # never write into a library that a running process has mapped


class BuildLibrary(build_ext):
    """`build_ext` whose one extension is the native library, put inside the package (or beside it with --inplace)."""

    def finalize_options(self) -> None:
        # Object files outlive the temporary folders of pip, unless --build-temp says otherwise.
        self.objects = Path(self.build_temp or ROOT / "build").resolve() / "specvlm"
        super().finalize_options()

    def run(self) -> None:
        package_root = ROOT if self.inplace or getattr(self, "editable_mode", False) else Path(self.build_lib)
        build(self.objects, package_root)

    def get_outputs(self) -> list[str]:
        made = [Path(self.build_lib) / library for library in (LIBRARY, CUDA_LIBRARY)]
        return [] if self.inplace else [str(path) for path in made if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted(SOURCES.rglob("*")) if path.is_file()]


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
