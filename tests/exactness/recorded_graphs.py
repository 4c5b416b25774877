"""CUDA graphs on the CPU: a capture writes down every operator that runs, a replay runs them again on the same memory.

As of a GPU's graphs, nothing but what lies in the captured tensors enters a replay: no argument of the call, and
nothing that Python would compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.compilation import breakable_cudagraph
from vllm.platforms.cpu import CpuPlatform

from tests.engine.nobody_waits import WAITING
from vllm_specvlm.engine import attention_break


class RecordedGraph(TorchDispatchMode):
    """In the place of `torch.cuda.CUDAGraph`."""

    replays: ClassVar[int] = 0
    """Of all graphs."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        assert name not in WAITING, f"'{name}' waits for the device while a graph is captured"
        assert "attention" not in name, f"'{name}' is part of a graph, which would keep this step's lengths"
        found = func(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        made = [tensor for tensor in _tensors(found) if tensor.untyped_storage().data_ptr() not in given]
        self._calls.append((func, args, kwargs, made))
        return found

    def capture_begin(self, pool: Any = None) -> None:
        self.__enter__()

    def capture_end(self) -> None:
        self.__exit__(None, None, None)

    def replay(self) -> None:
        RecordedGraph.replays += 1
        for func, args, kwargs, made in self._calls:
            found = [tensor for tensor in _tensors(func(*args, **kwargs)) if len(made)]
            unwritten = "empty" in func._schema.name
            for here, now in zip(made, found, strict=True):
                if unwritten and here.is_floating_point():
                    here.fill_(torch.nan)
                elif not unwritten:
                    here.copy_(now)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def install(patch: pytest.MonkeyPatch) -> None:
    """vLLM's wrappers capture and replay recorded graphs; to be in place while an engine starts."""
    patch.setattr(CpuPlatform, "support_static_graph_mode", classmethod(lambda cls: True))
    patch.setattr(CpuPlatform, "get_global_graph_pool", lambda self: (0, 0))
    patch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    patch.setattr(torch.accelerator, "empty_cache", lambda: None)
    patch.setattr(breakable_cudagraph, "validate_cudagraph_capturing_enabled", lambda: None)
    for module in (breakable_cudagraph, attention_break):
        patch.setattr(module, "weak_ref_tensors", lambda tensors: tensors)
