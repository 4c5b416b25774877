"""What nvcc makes of the GPU kernels: registers, memory and machine instructions, without a GPU.

`python -m tests.kernels.machine_code > tests/kernels/machine_code.csv` writes the table that the tests hold the code to
and that benchmarks/roofline.py computes with. Needs nvcc and cuobjdump (package nvidia-cuda-cuobjdump with
nvidia-cuda-nvdisasm, or a CUDA toolkit).
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"
TABLE = Path(__file__).with_suffix(".csv")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
SOURCES = ("launch", "attention_float", "attention_half", "attention_bfloat16")
NVCC = shutil.which("nvcc")
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
    tool = cuobjdump()
    assert tool is not None
    # It calls nvdisasm, which lies beside it.
    environment = os.environ | {"PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}

    def dump(option: str) -> str:
        command = [str(tool), option, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    usage = {
        m[1]: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", m[2])}
        for m in re.finditer(r"Function (\S+):\s*\n\s*(REG:.*)", dump("-res-usage"))
    }
    listings: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in dump("-sass").splitlines():
        if found := re.search(r"Function : (\S+)", line):
            current = listings.setdefault(found[1], [])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?);", line):
            current.append((int(found[1], 16), found[2]))
    return [_code(name, architecture, usage[name], listing) for name, listing in listings.items()]


def table() -> list[Code]:
    """The checked-in table."""
    with TABLE.open(newline="") as file:
        return [
            Code(**{f.name: row[f.name] if f.type == "str" else int(row[f.name]) for f in fields(Code)})
            for row in csv.DictReader(file)
        ]


def _code(name: str, architecture: str, usage: dict[str, int], listing: list[tuple[int, str]]) -> Code:
    count = Counter(_operation(text) for _, text in listing)
    readable = _readable(name)
    step = around = 0
    if count["HMMA"]:
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
    found = re.match(r"_ZN7specvlm\d+([a-z_]+?)(?:I(?:\d+__(?:nv_)?([a-z0-9]+?)|(f))?(?:Li(\d+)E)?E)?E", name)
    assert found is not None, name
    return " ".join(part for part in (found[1], found[2] or (found[3] and "float"), found[4]) if part)


def main() -> None:
    """Compiles everything and prints the table."""
    if nvcc_release() != RELEASE or cuobjdump() is None:
        raise SystemExit(f"The table is made with nvcc {RELEASE} and cuobjdump; install both.")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            code for arch, files in compile_all(Path(folder)).items() for file in files for code in read(file, arch)
        ]
    writer = csv.DictWriter(sys.stdout, [f.name for f in fields(Code)], lineterminator="\n")
    writer.writeheader()
    for code in sorted(rows, key=lambda c: (c.kernel, ARCHITECTURES.index(c.architecture))):
        writer.writerow(asdict(code))


if __name__ == "__main__":
    main()
