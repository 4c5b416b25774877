"""Notices what would make the CPU wait for a GPU, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",  # item, bool, int, float
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
}
_METHODS = ("numpy", "tolist", "item", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class _Listening(TorchDispatchMode):
    def __init__(self, guard: NobodyWaits) -> None:
        super().__init__()
        self._guard = guard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._guard.listening:
            name = func._schema.name.split("::")[1]
            masks = [a for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, torch.Tensor)]
            by_mask = name in ("index", "index_put", "index_put_") and any(m.dtype == torch.bool for m in masks[1:])
            if name in WAITING or by_mask:
                self._guard.waited.append(name)
            self._guard.calls += 1
        return func(*args, **(kwargs or {}))


class NobodyWaits:
    """What waited between `begin` and `end`. A mask may not pick rows either: their number would have to be known."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """`patch` puts listeners in the place of tensors' methods."""
        self.waited: list[str] = []
        self.calls = 0
        self.listening = False
        self._mode: _Listening | None = None
        for name in _METHODS:
            patch.setattr(torch.Tensor, name, self._noted(name, getattr(torch.Tensor, name)))

    def _noted(self, name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.listening:
                self.waited.append(name)
            return stock(tensor, *args, **kwargs)

        return method

    def begin(self) -> None:
        """Listen from here on."""
        self._mode = _Listening(self)
        self._mode.__enter__()
        self.listening = True

    def end(self) -> None:
        """Listen no more."""
        self.listening = False
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not here: what stands in for a kernel may look."""
        before, self.listening = self.listening, False
        yield
        self.listening = before
