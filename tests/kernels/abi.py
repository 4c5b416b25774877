"""What a native library asks of torch and of the machine, read from its dynamic symbols."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

LIST = Path(__file__).with_name("stable_abi_2_10.txt")
MANYLINUX_2_34 = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)}
"""Most of each that the wheel tag manylinux_2_34 allows."""


def undefined(library: Path) -> dict[str, str]:
    """The symbols that others have to bring, each with its version, "" for none; weak ones are left out."""
    command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line.split() for line in listing.splitlines()]
    found = [each[-1].partition("@") for each in words if each[-2] == "U"]
    return {name: version.lstrip("@") for name, _, version in found}


def stable() -> frozenset[str]:
    """The functions of torch 2.10's stable ABI."""
    return frozenset(line for line in LIST.read_text().splitlines() if not line.startswith("#"))


def declared(include: Path, compiler: str, target: str) -> frozenset[str]:
    """The functions that torch's headers declare for a library that names `TORCH_TARGET_VERSION` so."""
    headers = ("torch/csrc/inductor/aoti_torch/c/shim.h", "torch/csrc/stable/c/shim.h")
    source = "".join(f"#include <{header}>\n" for header in headers)
    command = [compiler, "-std=c++20", "-E", "-P", f"-DTORCH_TARGET_VERSION={target}", "-isystem", str(include)]
    done = subprocess.run([*command, "-x", "c++", "-"], input=source, capture_output=True, text=True, check=True)
    exported = r'__attribute__\s*\(\(__visibility__\("default"\)\)\)[\w\s*]+?((?:aoti_)?torch_\w+)\s*\('
    return frozenset(re.findall(exported, done.stdout))


def strangers(library: Path) -> list[str]:
    """Symbols that are neither of torch 2.10's stable ABI nor of the versioned system libraries."""
    return sorted(name for name, version in undefined(library).items() if not version and name not in stable())


def newest(library: Path) -> dict[str, tuple[int, ...]]:
    """The newest version of each system library that a symbol must have."""
    found: dict[str, tuple[int, ...]] = {}
    for version in filter(None, undefined(library).values()):
        name, _, number = version.partition("_")
        found[name] = max(found.get(name, ()), tuple(int(part) for part in number.split(".")))
    return found


def too_new(library: Path) -> dict[str, tuple[int, ...]]:
    """What of `newest` a machine of manylinux_2_34 need not have."""
    return {name: found for name, found in newest(library).items() if found > MANYLINUX_2_34.get(name, ())}
