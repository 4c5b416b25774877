"""Finds and loads the native library, and tells it whose arithmetic to follow.

The library registers the operators of `torch.ops.vllm_specvlm`; it loads the GPU kernels, a library
beside it, at the first call with CUDA tensors. Two environment variables serve tests and experiments:
`VLLM_SPECVLM_CPU_VARIANT` (portable, avx2, avx512, avx512_bf16) forces one build of the kernels, and
`VLLM_SPECVLM_CPU_ARITHMETIC` (avx512_bf16, avx512, avx2) the vLLM build whose results are followed bit for bit.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Order as in csrc/abi/tree_attention.h.
ARITHMETICS = ("avx512_bf16", "avx512", "avx2")
VARIANTS = ("avx512_bf16", "avx512", "avx2", "portable")

_PATH = Path(__file__).parent / "_lib" / "libspecvlm.so"


class LibraryNotFoundError(ImportError):
    """The native library is missing or cannot be loaded."""


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What runs on this CPU.

    Attributes:
        library: the loaded file.
        variant: the build of the kernels in use.
        variants: all builds this CPU can run, best first.
        arithmetic: the vLLM build whose results the op reproduces.
        fast: whether `fast=True` has a bfloat16 dot-product kernel here.
        half_l2: bytes of half the second-level cache, which vLLM's softmax tiles go by.
    """

    library: Path
    variant: str
    variants: tuple[str, ...]
    arithmetic: str
    fast: bool
    half_l2: int


def load() -> None:
    """Loads the library and registers the op; later calls do nothing.

    Raises:
        LibraryNotFoundError: the library is missing or does not fit the installed torch.
        ValueError: an environment variable asks for a variant or an arithmetic that does not exist here.
    """
    _library()


def cpu_features() -> CpuFeatures:
    """The kernels in use; loads the library. Raises what `load` raises."""
    lib = _library()
    return CpuFeatures(
        library=_PATH,
        variant=lib.specvlm_cpu_name().decode(),
        variants=tuple(name for name in VARIANTS if lib.specvlm_cpu_supports(name.encode())),
        arithmetic=ARITHMETICS[lib.specvlm_cpu_arithmetic()],
        fast=bool(lib.specvlm_cpu_has_fast()),
        half_l2=lib.specvlm_cpu_half_l2(),
    )


def has_cuda_kernels() -> bool:
    """Whether the package was built with the GPU kernels; says nothing about a GPU being there."""
    return _PATH.with_name("libspecvlm_cuda.so").is_file()


def choose(variant: str = "", arithmetic: str = "", half_l2: int = 0) -> None:
    """Forces a variant, an arithmetic or a cache size from now on, for the whole process; "" and 0 mean the default.

    Raises:
        ValueError: this CPU cannot run the variant, or the arithmetic is unknown.
    """
    lib = _library()
    _configure(lib, variant, arithmetic, half_l2)


def arithmetic_of_vllm() -> str:
    """Which build of its kernels vLLM loads on this machine (`CpuPlatform.import_kernels`), by the same questions."""
    if not torch.cpu._is_avx512_supported():
        return "avx2"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"


@functools.cache
def _library() -> ctypes.CDLL:
    if not _PATH.is_file():
        raise LibraryNotFoundError(
            f"The native library {_PATH} is missing: install the package with a C++ compiler present, or run "
            "`python setup.py build_ext --inplace` in a checkout."
        )
    try:
        torch.ops.load_library(str(_PATH))
        lib = ctypes.CDLL(str(_PATH))
    except OSError as error:
        raise LibraryNotFoundError(
            f"The native library {_PATH} does not load with torch {torch.__version__} ({error}): build it again."
        ) from error
    lib.specvlm_cpu_name.restype = ctypes.c_char_p
    lib.specvlm_cpu_half_l2.restype = ctypes.c_int64
    lib.specvlm_cpu_follow.argtypes = [ctypes.c_int, ctypes.c_int64]
    environment = os.environ
    _configure(
        lib,
        environment.get("VLLM_SPECVLM_CPU_VARIANT", ""),
        environment.get("VLLM_SPECVLM_CPU_ARITHMETIC", ""),
        half_l2=0,
    )
    register_fakes("vllm_specvlm")
    return lib


def register_fakes(namespace: str) -> None:
    """Tells torch's tracing what the operators of a library return: all write in place but `race`."""
    for name in ("tree_attention", "commit_rows", "walk_trees", "grow_level", "describe_trees", "try_wrappers"):
        torch.library.register_fake(f"{namespace}::{name}", lambda *args: None)
    torch.library.register_fake(f"{namespace}::race", lambda probs, keys: keys.new_empty(keys.shape))


def _configure(lib: ctypes.CDLL, variant: str, arithmetic: str, half_l2: int) -> None:
    arithmetic = arithmetic or arithmetic_of_vllm()
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"Unknown CPU arithmetic {arithmetic!r}, expected one of {', '.join(ARITHMETICS)}.")
    if lib.specvlm_cpu_choose(variant.encode()):
        raise ValueError(
            f"CPU variant {variant!r} does not exist or does not run here, use one of {', '.join(VARIANTS)}."
        )
    lib.specvlm_cpu_follow(ARITHMETICS.index(arithmetic), half_l2 or _half_l2())


def _half_l2() -> int:
    """Half the second-level cache in bytes, from where vLLM takes it: torch's own CPU description (2.10 has none)."""
    describe: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return int(describe().get("l2_cache_size", 0)) // 2 or 128 * 1024
