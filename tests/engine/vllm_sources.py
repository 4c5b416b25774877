"""The ledger checked against vLLM's Python files without importing them: for versions that do not run here."""

from __future__ import annotations

import ast
from pathlib import Path

from vllm_specvlm.engine.ledger import LEDGER, Symbol


def problems(root: Path) -> list[str]:
    """What the ledger misses in the sources below `root` (the folder that holds `vllm/`), a sentence each."""
    return [trouble for symbol in LEDGER if (trouble := _problem(root, symbol))]


def _problem(root: Path, symbol: Symbol) -> str | None:
    module, _, path = symbol.where.partition(":")
    scope: ast.AST | None = _parse(root, module)
    if scope is None:
        return f"{module} is missing."
    parts = path.split(".")
    for i, part in enumerate(parts):
        found = _member(root, scope, part)
        if found is None and i == 0 and part in _imported(scope):
            return None  # Re-exported; its own module is not followed.
        if found is None:
            return f"{module} has no {'.'.join(parts[: i + 1])}."
        scope = found
    if symbol.parameters:
        if isinstance(scope, ast.ClassDef):
            scope = _member(root, scope, "__init__")
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            return f"{symbol.where} is no function."
        names = [a.arg for a in (*scope.args.posonlyargs, *scope.args.args) if a.arg != "self"]
        if tuple(names[: len(symbol.parameters)]) != symbol.parameters:
            return f"{symbol.where} takes {names}, not {list(symbol.parameters)}."
    return None


def _parse(root: Path, module: str) -> ast.Module | None:
    base = root / Path(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.exists():
            return ast.parse(file.read_text())
    return None


def _member(root: Path, scope: ast.AST, name: str) -> ast.AST | None:
    for node in getattr(scope, "body", ()):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node
    return None


def _imported(scope: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # Lazily exported names stand in a table of strings.
    return names
