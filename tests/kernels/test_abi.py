"""One library for every torch from 2.10 on: all that it asks of torch is the stable ABI of that release."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kernels import abi
from vllm_specvlm import ops

CXX = shutil.which("g++")
GLIBC = tuple(int(part) for part in platform.libc_ver()[1].split(".")[:2])

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to list symbols with")
needs_compiler = pytest.mark.skipif(CXX is None, reason="no C++ compiler")


def libraries() -> list[Path]:
    """Those of the package as it is here: for the CPU, and for GPUs if it was built."""
    first = ops.cpu_features().library
    return [path for path in (first, first.with_name("libspecvlm_cuda.so")) if path.is_file()]


def test_only_the_stable_abi_is_asked_for() -> None:
    """No C++ symbol of torch's or c10's either: those have no version, and are on no list."""
    cpu, *gpu = libraries()
    used = abi.stable() & set(abi.undefined(cpu))
    assert {"aoti_torch_get_data_ptr", "torch_parallel_for", "torch_call_dispatcher"} <= used
    assert abi.strangers(cpu) == []
    for library in gpu:
        assert abi.strangers(library) == []
        assert not abi.stable() & set(abi.undefined(library)), "the GPU kernels know no torch"


@pytest.mark.skipif(GLIBC > (2, 36), reason="built beside a newer glibc than wheels to hand out are (2.36 or older)")
def test_wheels_fit_manylinux() -> None:
    for library in libraries():
        assert abi.newest(library)["GLIBC"] >= (2, 14)
        assert abi.too_new(library) == {}


@needs_compiler
def test_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of torch 2.11, one of c10's in C++ and a system that is too old are noticed."""
    source, made = tmp_path / "strange.cpp", tmp_path / "strange.so"
    source.write_text(
        """
        #include <cmath>
        namespace c10 { void warn(int); }
        extern "C" { int aoti_torch_get_data_ptr(void*, void**); int torch_from_blob(void*); }
        extern "C" double use(double x) {
          aoti_torch_get_data_ptr(nullptr, nullptr);
          torch_from_blob(nullptr);
          c10::warn(1);
          return std::exp(x);
        }
        """
    )
    subprocess.run([str(CXX), "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    assert abi.strangers(made) == ["_ZN3c104warnEi", "torch_from_blob"]
    assert abi.too_new(made) == {}
    monkeypatch.setitem(abi.MANYLINUX_2_34, "GLIBC", (2, 17))
    assert abi.too_new(made) == {"GLIBC": (2, 29)}


@needs_compiler
def test_the_list_is_in_torchs_headers() -> None:
    """What later releases add is behind a guard, and not on the list."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    include = Path(found.origin).parent / "include"
    assert len(abi.stable()) > 100
    assert abi.stable() <= abi.declared(include, str(CXX), "0x020a000000000000")
    later = abi.declared(include, str(CXX), "0x020d000000000000") - abi.stable()
    assert "torch_from_blob" in later
