"""Where names of requests are held by objects of the plugin; also asked by `benchmarks/soak_census.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

OURS = ("vllm_specvlm", "tests")
_RUNNERS_OWN = ("tree_code", "tree_store", "tree_sampler", "_trees", "_verification", "_sampled", "_kept_rows")


def traced(root: Any, mark: str, passed_over: Any) -> list[str]:
    """Where below `root` a string that starts with `mark` is held: attributes, keys, elements, whatever the class.

    Objects of other packages are not entered, except containers; nor is the one to be `passed_over`.
    """
    found: list[str] = []
    seen = {id(passed_over)}
    left = [("", root)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            if value.startswith(mark):
                found.append(path)
            continue
        if id(value) in seen or isinstance(value, torch.Tensor | type):
            continue
        seen.add(id(value))
        left += [(f"{path}{step}", inner) for step, inner in _inside(value)]
    return found


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in list(value.items()):
            yield "[key]", key
            yield f"[{str(key)[:20]!r}]", inner
    elif isinstance(value, list | tuple | set | frozenset) or type(value).__name__ in ("deque", "OrderedDict"):
        for i, inner in enumerate(value):
            yield f"[{i}]", inner
    elif type(value).__module__.startswith(OURS):
        names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
        for name in names | getattr(value, "__dict__", {}).keys():
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def holders(runner: Any) -> dict[str, Any]:
    """Everything of ours in a worker: the speculator, the sampler, and what vLLM's runner got from us.

    Empty for a runner of plain vLLM.
    """
    if not hasattr(runner, "tree_sampler"):
        return {}
    return {"drafter": runner.drafter, **{name: getattr(runner, name) for name in _RUNNERS_OWN}}
