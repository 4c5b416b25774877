"""The GPU kernels under sanitizers, and copies of them with one mistake each, which must be caught."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernels import emulated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated.CXX is None, reason="no C++ compiler to build the emulated kernels with"),
]

MAIN = emulated.ROOT / "tests" / "kernels" / "gpu_main.cpp"
ONE_SIZE = "-DSPECVLM_HEAD_SIZES=SPECVLM_HEAD_SIZE(64)"
PLAIN = ("-O1", ONE_SIZE)
ADDRESSES = ("-O1", "-g", ONE_SIZE, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-O1", "-g", ONE_SIZE, "-fsanitize=thread")


@dataclass(frozen=True)
class Mutant:
    """One mistake: the first `right` in `file` becomes `wrong`; then `words` must be among what the program says."""

    name: str
    file: str
    right: str
    wrong: str
    flags: Sequence[str] = PLAIN
    words: str = "wrong by"


BARRIER = "__syncthreads();"
GROWTH, WALK, RACE = "../common/growth.h", "../common/walk.h", "acceptance.cuh"
MMA, CORES, TABLES = "attention_mma.cuh", "attention_cores.cuh", "tables.cuh"
# What only ThreadSanitizer sees gives right results under every schedule tried.
MUTANTS = [
    Mutant("mma: no barrier before the products", MMA, BARRIER + "  // everybody", "  // everybody"),
    Mutant("mma: no barrier after the products", MMA, BARRIER + "  // nobody", "  // nobody", THREADS, "data race"),
    Mutant("cores: no barrier before the products", CORES, BARRIER + "  // the step", "  // the step"),
    Mutant("cores: no barrier after the products", CORES, BARRIER + "  // nobody", "  // nobody"),
    Mutant("cores: weights without a warp barrier", CORES, "__syncwarp();", "", THREADS, "data race"),
    Mutant("mma: waits for one step too few", MMA, "if (more) wait_copies<1>();", "if (more) wait_copies<2>();"),
    Mutant(
        "mma: last step not waited for",
        MMA,
        "else wait_copies<0>();",
        "else wait_copies<1>();",
        words="never waited for",
    ),
    Mutant(
        "mma: groups written to the other stage",
        MMA,
        "groups_[stage * kGroups + q]",
        "groups_[(stage ^ 1) * kGroups + q]",
    ),
    Mutant(
        "dense mask off by one",
        TABLES,
        "ancestors[first / 64] >> first % 64",
        "ancestors[first / 64] >> (first + 1) % 64",
    ),
    Mutant("second mask word left out", TABLES, "ancestors[first / 64] >>", "ancestors[0] >>"),
    Mutant("a row sees itself in the pages", TABLES, "smaller(groups[q].z, upto)", "smaller(groups[q].z, upto + 1)"),
    Mutant("a span begins one key early", TABLES, "larger(start_, position_)", "larger(start_ - 1, position_)"),
    Mutant("a page is left one group late", TABLES, "if (slot_ == page_) slot_ = 0", "if (slot_ > page_) slot_ = 0"),
    Mutant("an empty span is entered", TABLES, "while (left_ > 0 && in_span(0) == 0);", "while (false);"),
    Mutant("the dense rows belong to every piece", TABLES, "piece + 1 == cut.pieces};", "true};"),
    Mutant("requests without rows are miscounted", TABLES, "all_rows - rows, owner", "all_rows, owner"),
    Mutant("old sums are not rescaled", MMA, "sum_[i] * factor + sum", "sum_[i] + sum"),
    Mutant("old output is not rescaled", CORES, "out_[r][c] *= factor", "out_[r][c] *= 1.0f"),
    Mutant("merge forgets a piece", "merge.cuh", "piece = 0; piece < pieces", "piece = 1; piece < pieces"),
    Mutant("merge weighs in base e", "merge.cuh", "exp2_fast(mine - top)", "expf(mine - top)"),
    Mutant("new values are not stored", "rows.cuh", "p.dense_value) + to", "p.dense_value) + (to + 1)"),
    Mutant(
        "commit writes past the key",
        "rows.cuh",
        "to + p.head_size * size,",
        "to + p.head_size * size - 16,",
        words="commit_rows: wrong",
    ),
    Mutant(
        "queries read past their end",
        MMA,
        "static_cast<const T*>(p_.query) +",
        "static_cast<const T*>(p_.query) + 8 +",
        ADDRESSES,
        "heap-buffer-overflow",
    ),
    Mutant(
        "keys read in the next block",
        TABLES,
        "blocks_[column_] * block_stride_",
        "(blocks_[column_] + 1) * block_stride_",
        ADDRESSES,
        "heap-buffer-overflow",
    ),
    Mutant(
        "growth: candidates are compared before all are there",
        GROWTH,
        "  team.sync();\n  for (int i = team.index(); i < all; i += team.size()) {\n    if (c.scores[i] == -INFINITY)",
        "  for (int i = team.index(); i < all; i += team.size()) {\n    if (c.scores[i] == -INFINITY)",
        THREADS,
        "data race",
    ),
    Mutant(
        "growth: nodes are moved before all are ranked",
        GROWTH,
        "  team.sync();\n  for (int i = team.index(); i < all; i += team.size()) {\n    if (c.ranks[i] < 0)",
        "  for (int i = team.index(); i < all; i += team.size()) {\n    if (c.ranks[i] < 0)",
        words="grow_level",
    ),
    Mutant(
        "growth: the frontier is chosen before all nodes lie there",
        GROWTH,
        "  team.sync();\n  if (team.index() != 0)",
        "  if (team.index() != 0)",
        words="grow_level",
    ),
    Mutant("growth: shared memory too small", GROWTH, "count(p)) * 32", "count(p)) * 28", ADDRESSES, "heap-buffer"),
    Mutant(
        "growth: equal candidates change places", GROWTH, "c.origins[j] < c", "c.origins[j] > c", words="grow_level"
    ),
    Mutant(
        "growth: a mask without the node itself",
        GROWTH,
        "exists ? i : -1; node",
        "exists ? p.parents[at] : -1; node",
        words="grow_level",
    ),
    Mutant("walks: placeholders are accepted", WALK, " || wanted < 0", "", words="acceptance"),
    Mutant(
        "walks: slots of the nodes, not of the rows",
        WALK,
        "linear_slots[begin + i]",
        "linear_slots[begin + path[i]]",
        words="acceptance",
    ),
    Mutant("races: half a warp is not asked", RACE, "int by = 16", "int by = 8", words="acceptance"),
    Mutant(
        "races: warps are compared before all have ended",
        RACE,
        "const bool broken = __syncthreads_or(!law);",
        "const bool broken = !law;",
        words="acceptance",
    ),
    Mutant(
        "wrappers: a copy is not waited for", "wrappers.cu", "  wait_copies<1>();\n", "", PLAIN, "try_wrappers: wrong"
    ),
    Mutant(
        "wrappers: lanes do not meet",
        "wrappers.cu",
        "  wait_copies<0>();\n  __syncwarp();\n",
        "  wait_copies<0>();\n",
        THREADS,
        "data race",
    ),
    Mutant(
        "shared memory too small",
        MMA,
        "kBytes = 4 * static_cast",
        "kBytes = 3 * static_cast",
        ADDRESSES,
        "heap-buffer-overflow",
    ),
]


class Workshop:
    """Object files of the kernels as they are, one set for each choice of flags, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Sequence[str], Path] = {}

    def objects(self, flags: Sequence[str]) -> Path:
        """Folder of all object files, the main program's too."""
        if flags not in self._made:
            folder = self._folder / str(len(self._made))
            folder.mkdir()
            main = (["-std=c++20", *flags, "-c", str(MAIN)], folder / "main.o")
            emulated.compile_all([*emulated.kernel_jobs(emulated.CSRC, folder, flags), main])
            self._made[flags] = folder
        return self._made[flags]

    def program(self, flags: Sequence[str], target: Path, instead: Path | None = None) -> Path:
        """Links the program; object files in `instead` take the place of those of the same name."""
        objects = {path.name: path for path in self.objects(flags).glob("*.o")}
        if instead is not None:
            objects |= {path.name: path for path in instead.glob("*.o")}
        emulated.compile_all([([*flags, *map(str, objects.values())], target)])
        return target


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("kernels"))


def run(program: Path, rounds: int, seed: int, dtypes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), str(rounds), str(seed), dtypes], capture_output=True, text=True, check=False)


def test_random_schedules(workshop: Workshop, tmp_path: Path) -> None:
    program = workshop.program(PLAIN, tmp_path / "main")
    for seed in (0, 1, 1000):
        done = run(program, 4, seed, "float bfloat16 half")
        assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize("flags", [ADDRESSES, THREADS], ids=["addresses and undefined behaviour", "threads"])
def test_sanitizers(workshop: Workshop, tmp_path: Path, flags: Sequence[str]) -> None:
    done = run(workshop.program(flags, tmp_path / "main"), 2, 3, "float bfloat16 half")
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_mutants(workshop: Workshop, tmp_path: Path, mutant: Mutant) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(emulated.CSRC, csrc)
    file = csrc / "gpu" / mutant.file
    text = file.read_text()
    assert mutant.right in text, "the mistake's place is gone: change the mutant with the kernel"
    file.write_text(text.replace(mutant.right, mutant.wrong, 1))
    changed = {
        MMA: ["attention_bfloat16"],
        CORES: ["attention_float"],
        "merge.cuh": ["launch"],
        "rows.cuh": ["launch"],
        "wrappers.cu": ["wrappers"],
        GROWTH: ["launch"],
        WALK: ["launch"],
        RACE: ["launch"],
    }
    kernels = changed.get(mutant.file, ["launch", "attention_float", "attention_bfloat16"])
    objects = tmp_path / "objects"
    objects.mkdir()
    jobs = [job for job in emulated.kernel_jobs(csrc, objects, mutant.flags, kernels) if job[1].name != "simt.o"]
    emulated.compile_all(jobs)
    program = workshop.program(mutant.flags, tmp_path / "main", objects)
    for seed in range(1, 4):
        done = run(program, 2, seed, "float bfloat16")
        if mutant.words in done.stdout + done.stderr:
            return
    pytest.fail(f"not caught: {done.returncode} {done.stdout} {done.stderr[-2000:]}")
