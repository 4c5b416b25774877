"""The memory that K/V of tree nodes take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_specvlm.engine.dense_store import DenseStore
from vllm_specvlm.engine.draft_network import PREFIX


class TreeMemory:
    """Bytes of a tree node's keys and values in the layers of the target, or of some of them."""

    def __init__(self, layers: Mapping[str, Any], bound: int) -> None:
        """All loaded layers by name, the draft's own too (their names begin with `PREFIX`), and bytes there may be."""
        self._layers = {name: layer for name, layer in layers.items() if isinstance(layer, Attention)}
        self._bound = bound

    def target(self) -> list[str]:
        """The target's layers."""
        return [name for name in self._layers if not name.startswith(PREFIX)]

    def row_bytes(self, names: list[str]) -> int:
        """Of one node in these layers, on this rank."""
        return sum(
            2 * layer.num_kv_heads * layer.head_size * layer.kv_cache_torch_dtype.itemsize
            for layer in (self._layers[name] for name in names)
        )

    def rows(self, names: list[str]) -> int:
        """Nodes whose K/V in these layers the bound has room for, one at least."""
        return max(1, self._bound // max(1, self.row_bytes(names)))

    def allocate(self, store: DenseStore, names: list[str], device: torch.device) -> None:
        """Make the tensors of a store with a limit now, so that vLLM counts them before it takes the rest.

        Layers of one call have one dtype: a model's.
        """
        assert store.limit is not None
        layers = {name: self._layers[name] for name in names}
        like = torch.empty(0, dtype=next(iter(layers.values())).kv_cache_torch_dtype, device=device)
        shapes = {name: (layer.num_kv_heads, layer.head_size) for name, layer in layers.items()}
        store.allocate(store.limit, shapes, like)
