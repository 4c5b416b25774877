"""The compiled GPU kernels against the checked-in table of registers, memory and instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import machine_code
from tests.kernels.machine_code import Code

TABLE = {(code.kernel, code.architecture): code for code in machine_code.table()}
MOST_REGISTERS = {
    "attend_mma": 255,
    "attend_cores": 168,
    "merge_pieces": 48,
    "store_rows": 64,
    "commit_rows": 64,
    "walk_trees": 48,
    "run_races": 48,
    "grow_trees": 64,
    "describe_trees": 48,
    "try_wrappers": 64,
}


def test_nothing_in_the_table_uses_local_memory() -> None:
    assert {code.kernel.split()[0] for code in TABLE.values()} == set(MOST_REGISTERS)
    for code in TABLE.values():
        assert code.stack == code.local == 0, code
        assert code.registers <= MOST_REGISTERS[code.kernel.split()[0]], code


@pytest.mark.parametrize("code", TABLE.values(), ids=lambda c: f"{c.kernel} {c.architecture}")
def test_instructions_are_those_of_the_algorithm(code: Code) -> None:
    """A step of n keys and d channels has n d / 128 products for the logits and as many for the output, two a load."""
    name, *arguments = code.kernel.split()
    if name == "try_wrappers":  # two halves of a product, a load plain and one transposed, three copies
        assert (code.products, code.fragments, code.copies, code.step, code.barriers) == (2, 2, 3, 0, 0)
        return
    if name != "attend_mma":
        assert code.products == code.fragments == code.copies == code.step == 0
        return
    channels = int(arguments[1])
    keys = 32 if channels > 128 else 64
    assert code.products == 2 * keys * channels // 128
    assert code.fragments == code.products // 2
    assert code.products < code.step < 900
    # Two barriers a step, and three in setting infinite values aside.
    assert code.barriers == 5


@pytest.mark.parametrize("architecture", machine_code.ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "product"), [("half", "HMMA.16816.F32"), ("bfloat16", "HMMA.16816.F32.BF16")])
def test_each_wrapper_becomes_its_instruction(architecture: str, dtype: str, product: str) -> None:
    """Shapes, types, transposition, width and zeros of copies, groups a wait leaves: a wrong string changes one."""
    found = {
        each.instruction: each.count
        for each in machine_code.wrapper_table()
        if (each.kernel, each.architecture) == (f"try_wrappers {dtype}", architecture)
    }
    assert found == {
        product: 2,
        "LDSM.16.M88.4": 1,
        "LDSM.16.MT88.4": 1,
        "LDGSTS.E.BYPASS.128": 2,
        "LDGSTS.E.BYPASS.128 !PT": 1,
        "LDGDEPBAR": 2,
        "DEPBAR.LE SB0, 0x1": 1,
        "DEPBAR.LE SB0, 0x0": 1,
        "MUFU.EX2": 1,
    }


@pytest.mark.slow
@pytest.mark.skipif(machine_code.NVCC is None, reason="nvcc is not installed")
@pytest.mark.skipif(machine_code.cuobjdump() is None, reason="cuobjdump (nvidia-cuda-cuobjdump) is not installed")
@pytest.mark.skipif(
    machine_code.nvcc_release() not in ("", machine_code.RELEASE),
    reason=f"the table is of nvcc {machine_code.RELEASE}, other releases make other code",
)
def test_the_table_is_what_nvcc_makes(tmp_path: Path) -> None:
    files = machine_code.compile_all(tmp_path)
    made = [code for arch, of_arch in files.items() for f in of_arch for code in machine_code.read(f, arch)]
    assert {(code.kernel, code.architecture): code for code in made} == TABLE
    wrappers = [each for arch, of_arch in files.items() for each in machine_code.read_wrappers(of_arch[-1], arch)]
    assert set(wrappers) == set(machine_code.wrapper_table())
