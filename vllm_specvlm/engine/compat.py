"""Whether the installed vLLM is one we fit: its version, and every entry of the ledger.

Checked when a worker starts, by `specvlm doctor`, and by a test against the sources of other versions.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from vllm_specvlm.engine.ledger import LEDGER, Symbol

SUPPORTED = ((0, 32), (0, 33))
"""Minor versions of vLLM: 0.32 is run by the tests, 0.33's Python files are checked against this ledger."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of checking one symbol."""

    symbol: str
    where: str
    why: str
    ok: bool
    detail: str


def version_problem(version: str) -> str | None:
    """Why this version of vLLM is refused, or None."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return f"vLLM's version '{version}' cannot be read; install vLLM 0.32."
    if (major, minor) not in SUPPORTED:
        return f"vLLM {version} is not supported (0.32 is, 0.33 is checked); install vLLM 0.32."
    return None


def check() -> list[Finding]:
    """Check the installed vLLM against the ledger: its version, and every symbol with the parameters we rely on."""
    import vllm

    trouble = version_problem(vllm.__version__)
    findings = [Finding("vllm", "vllm", "supported version", trouble is None, trouble or f"is {vllm.__version__}")]
    return findings + [_check(symbol) for symbol in LEDGER if not _elsewhere(symbol)]


def _elsewhere(symbol: Symbol) -> bool:
    """Whether it belongs to vLLM's CPU backend, and this is another one: importing its worker breaks torch's CUDA."""
    from vllm.platforms import current_platform

    module = symbol.where.partition(":")[0]
    return not current_platform.is_cpu() and module.rpartition(".")[2].startswith("cpu_")


def _check(symbol: Symbol) -> Finding:
    module_name, _, path = symbol.where.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    except (ImportError, AttributeError) as error:
        return Finding(path, module_name, symbol.why, False, f"is missing ({error})")
    if symbol.parameters:
        names = [name for name in inspect.signature(found).parameters if name != "self"]
        if tuple(names[: len(symbol.parameters)]) != symbol.parameters:
            return Finding(path, module_name, symbol.why, False, f"takes {names}, not {list(symbol.parameters)}")
    return Finding(path, module_name, symbol.why, True, symbol.use)
