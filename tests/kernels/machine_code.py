"""What nvcc makes of the GPU kernels: registers, memory and machine instructions, without a GPU.

`python -m tests.kernels.machine_code` writes the tables that the tests hold the code to: machine_code.csv, which
benchmarks/roofline.py computes with as well, and wrapper_code.csv. Needs nvcc and cuobjdump (package
nvidia-cuda-cuobjdump with nvidia-cuda-nvdisasm, or a CUDA toolkit).
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TypeVar

CSRC = Path(__file__).parents[2] / "csrc"
TABLE = Path(__file__).with_suffix(".csv")
WRAPPER_TABLE = Path(__file__).with_name("wrapper_code.csv")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
SOURCES = ("launch", "attention_float", "attention_half", "attention_bfloat16", "wrappers")
PTX = ("HMMA", "LDSM", "LDGSTS", "LDGDEPBAR", "DEPBAR", "MUFU")
"""What the wrappers of ptx.cuh become."""
NVCC = shutil.which("nvcc")
ARow = TypeVar("ARow", "Code", "Instruction")
RELEASE = "13.0"  # of the nvcc that made the table; other releases make other code


@dataclass(frozen=True)
class Code:
    """One kernel for one architecture.

    Attributes:
        kernel: its name and template arguments.
        architecture: such as sm_90.
        registers: of a thread.
        stack: bytes of a thread, spills included.
        shared: static bytes of a block.
        instructions: machine instructions.
        step: those that a warp runs in an ordinary step of `attend_mma`: the shortest way through its loop that has all
            matrix products and the copies of a whole step. 0 for other kernels.
        around: those of a block with a single step besides the step's: the shortest way through the kernel that has all
            products, the copies of two steps and the results' stores.
        products: HMMA.
        fragments: LDSM (ldmatrix).
        copies: LDGSTS (cp.async) in the whole kernel.
        barriers: BAR.
        local: LDL and STL, accesses to local memory.
    """

    kernel: str
    architecture: str
    registers: int
    stack: int
    shared: int
    instructions: int
    step: int
    around: int
    products: int
    fragments: int
    copies: int
    barriers: int
    local: int


@dataclass(frozen=True)
class Instruction:
    """What wrappers of ptx.cuh become in `try_wrappers`, which calls each of them.

    Attributes:
        kernel: `try_wrappers` and its template argument.
        architecture: such as sm_90.
        instruction: the machine instruction with all its modifiers, one of `PTX`; "!PT" is a copy of zeros.
        count: how often it stands there.
    """

    kernel: str
    architecture: str
    instruction: str
    count: int


def nvcc_release() -> str:
    """Such as "13.0"; empty without nvcc."""
    if NVCC is None:
        return ""
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else ""


def cuobjdump() -> Path | None:
    """The disassembler: on the path, or in the Python package."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    try:
        files = metadata.files("nvidia-cuda-cuobjdump") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == "cuobjdump"), None)


def compile_all(folder: Path, architectures: tuple[str, ...] = ARCHITECTURES) -> dict[str, list[Path]]:
    """Object files of all kernels by architecture."""
    made = {arch: [folder / f"{name}.{arch}.o" for name in SOURCES] for arch in architectures}

    def run(arch: str, name: str, target: Path) -> None:
        command = [str(NVCC), "-std=c++17", "-O3", f"-arch={arch}", "-c", str(CSRC / "gpu" / f"{name}.cu"), "-o"]
        done = subprocess.run([*command, str(target)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr

    jobs = [(arch, name, path) for arch in made for name, path in zip(SOURCES, made[arch], strict=True)]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    return made


def read(path: Path, architecture: str) -> list[Code]:
    """What an object file holds."""
    usage = {
        m[1]: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", m[2])}
        for m in re.finditer(r"Function (\S+):\s*\n\s*(REG:.*)", _dump(path, "-res-usage"))
    }
    return [_code(name, architecture, usage[name], listing) for name, listing in _listings(path).items()]


def read_wrappers(path: Path, architecture: str) -> list[Instruction]:
    """What an object file of wrappers.cu holds of them."""
    found = []
    for name, listing in _listings(path).items():
        counted = sorted(Counter(_modified(text) for _, text in listing if _operation(text) in PTX).items())
        found += [Instruction(_readable(name), architecture, text, count) for text, count in counted]
    return found


def _modified(text: str) -> str:
    """The instruction without its registers; how many groups a wait leaves, and that a copy is of zeros, are said."""
    said = re.sub(r"^@!?U?P\w+ +", "", text).strip()
    if said.startswith("DEPBAR"):
        return said
    return said.split()[0] + (" !PT" if said.endswith("!PT") else "")


def _dump(path: Path, option: str) -> str:
    tool = cuobjdump()
    assert tool is not None
    # It calls nvdisasm, which lies beside it.
    environment = os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [str(tool), option, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _listings(path: Path) -> dict[str, list[tuple[int, str]]]:
    """Addresses and instructions by kernel."""
    listings: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in _dump(path, "-sass").splitlines():
        if found := re.search(r"Function : (\S+)", line):
            current = listings.setdefault(found[1], [])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", line):
            current.append((int(found[1], 16), found[2]))
    return listings


def table() -> list[Code]:
    """The checked-in table of kernels."""
    return _load(TABLE, Code)


def wrapper_table() -> list[Instruction]:
    """The checked-in table of what the wrappers become."""
    return _load(WRAPPER_TABLE, Instruction)


def _load(path: Path, kind: type[ARow]) -> list[ARow]:
    with path.open(newline="") as file:
        return [
            kind(**{f.name: row[f.name] if f.type == "str" else int(row[f.name]) for f in fields(kind)})
            for row in csv.DictReader(file)
        ]


def _save(path: Path, rows: Sequence[Code] | Sequence[Instruction]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda row: (row.kernel, ARCHITECTURES.index(row.architecture))):
            writer.writerow(asdict(row))


def _code(name: str, architecture: str, usage: dict[str, int], listing: list[tuple[int, str]]) -> Code:
    count = Counter(_operation(text) for _, text in listing)
    readable = _readable(name)
    step = around = 0
    if readable.startswith("attend_mma"):
        copies, loop = copies_of_step(readable), _loop(listing)
        step = _fewest(loop, {"HMMA": count["HMMA"], "LDGSTS": copies}, at_exit=False)
        # A row pair's results leave in pieces of two channels.
        stores = int(readable.split()[2]) // 4
        whole = {"HMMA": count["HMMA"], "LDGSTS": 2 * copies, "STG": stores}
        around = _fewest(listing, whole, at_exit=True) - step
    return Code(
        kernel=readable,
        architecture=architecture,
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=usage["SHARED"],
        instructions=len(listing),
        step=step,
        around=around,
        products=count["HMMA"],
        fragments=count["LDSM"],
        copies=count["LDGSTS"],
        barriers=count["BAR"],
        local=count["LDL"] + count["STL"],
    )


def copies_of_step(kernel: str) -> int:
    """cp.async of a thread in a step of `attend_mma`: keys and values, 16 bytes each, in groups of 16 slots."""
    channels = int(kernel.split()[2])
    keys = 32 if channels > 128 else 64
    return 2 * (keys // 16) * -(-16 * channels // 8 // 128)


def _loop(listing: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The longest loop with products; empty if there is none."""
    loops: list[list[tuple[int, str]]] = [[]]
    for at, text in listing:
        target = _target(text)
        if target is not None and target < at:
            body = [(a, t) for a, t in listing if target <= a <= at]
            if any(_operation(t) == "HMMA" for _, t in body):
                loops.append(body)
    return max(loops, key=len)


def _fewest(listing: Sequence[tuple[int, str]], wanted: dict[str, int], at_exit: bool) -> int:
    """Instructions on the shortest way, forward only, that runs at least so many of each wanted operation.

    It leads from the first instruction to behind the last one or, `at_exit`, to an EXIT.
    """
    index = {at: i for i, (at, _) in enumerate(listing)}
    names = list(wanted)
    # For each instruction, by how many of the wanted ones lie before it: the fewest instructions before it.
    fewest: list[dict[tuple[int, ...], int]] = [{} for _ in range(len(listing) + 1)]
    fewest[0][(0,) * len(names)] = 0
    everything, found = tuple(wanted.values()), []
    for i, (_, text) in enumerate(listing):
        operation, target = _operation(text), _target(text)
        following = [i + 1]
        if operation == "BRA":
            # BRA.DIV is for warps whose lanes have parted. Behind a branch back to a loop's beginning stands its end.
            conditional = text.startswith("@") or re.search(r"BRA(\.DIV|(\.\w+)* !?U?P)", text) is not None
            place_of_target = index.get(target or 0)
            back = place_of_target is not None and place_of_target <= i
            following = [i + 1] * (conditional or back)
            if place_of_target is not None and not back:
                following.append(place_of_target)
        elif operation in ("EXIT", "RET", "BRX") and not text.startswith("@"):
            following = []
        for counts, before in fewest[i].items():
            state = tuple(min(wanted[n], c + (operation == n)) for n, c in zip(names, counts, strict=True))
            if operation == "EXIT" and at_exit and state == everything:
                found.append(before + 1)
            for place in following:
                fewest[place][state] = min(fewest[place].get(state, before + 1), before + 1)
    return min(found) if at_exit else fewest[-1][everything]


def _target(text: str) -> int | None:
    """Where a branch goes."""
    found = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
    return int(found[1], 16) if found else None


def _operation(text: str) -> str:
    return re.sub(r"^@!?U?P\w+ +", "", text).split()[0].split(".")[0]


def _readable(name: str) -> str:
    """_ZN7specvlm10attend_mmaI13__nv_bfloat16Li128EEEv... -> attend_mma bfloat16 128."""
    rest = name.removeprefix("_ZN7specvlm")
    if unnamed := re.match(r"(\d+)_GLOBAL__N_", rest):  # a namespace without a name has a long one of nvcc's
        rest = rest[len(unnamed[1]) + int(unnamed[1]) :]
    found = re.match(r"\d+([a-z_]+?)(?:I(?:\d+__(?:nv_)?([a-z0-9]+?)|(f))?(?:Li(\d+)E)?E)?E", rest)
    assert found is not None, name
    return " ".join(part for part in (found[1], found[2] or (found[3] and "float"), found[4]) if part)


def main() -> None:
    """Compiles everything and writes the tables."""
    if nvcc_release() != RELEASE or cuobjdump() is None:
        raise SystemExit(f"The table is made with nvcc {RELEASE} and cuobjdump; install both.")
    with tempfile.TemporaryDirectory() as folder:
        made = compile_all(Path(folder))
        _save(TABLE, [code for arch, files in made.items() for file in files for code in read(file, arch)])
        _save(WRAPPER_TABLE, [each for arch, files in made.items() for each in read_wrappers(files[-1], arch)])


if __name__ == "__main__":
    main()
