"""What drafters have in common whose rows are tokens and nothing else: the root of a tree is a dense row of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from vllm.config import ModelConfig, VllmConfig

from vllm_specvlm.engine.device_trees import DeviceLevel
from vllm_specvlm.engine.model_drafter import AFeed, ModelDrafter
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep
from vllm_specvlm.tree.grow import Frontier


class TokenDrafter(ModelDrafter[AFeed]):
    """Feeds roots with what is missing before them, then runs a level's tokens at the positions behind them."""

    def __init__(
        self, vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally, *, model_config: ModelConfig
    ) -> None:
        """`model_config` says how positions are written: the draft's, or the target's."""
        super().__init__(vllm_config, options, tally, dense_root=True)
        self._model_config = model_config
        self._root_hidden: torch.Tensor | None = None
        self._root_positions = torch.empty(0)

    @abstractmethod
    def _run(self, step: TreeStep, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] of the draft's own ids int32 [rows], whose K/V stay dense; positions as `_node_positions`."""

    @abstractmethod
    def _own_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        """int32 [n]: the draft's own ids of the target's tokens int64 [n], both on the device."""

    def _run_level(self, rows: Sequence[TreeRows], tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """[rows, hidden] of tokens int64 [rows] whose K/V stay dense; positions as `_node_positions` gives them."""
        step = TreeStep.build(
            rows, self._trees.store, self._device, covers_batch=True, fast=self._options.fast_attention
        )
        return self._run(step, self._ids(tokens), self._tensor(positions))

    def open_levels(self, widths: Sequence[int]) -> None:
        """Also the positions of the roots, from which those of all nodes follow."""
        super().open_levels(widths)
        roots = self._trees.indexes
        self._root_positions = self._tensor(self._node_positions(roots, np.zeros(len(roots), dtype=np.int64)))

    def _roots_on_device(self) -> torch.Tensor:
        assert self._root_hidden is not None
        return self._root_hidden

    def _level_on_device(self, level: DeviceLevel, step: TreeStep) -> torch.Tensor:
        positions = (self._root_positions + level.depth).repeat_interleave(level.tokens.shape[1], dim=-1)
        return self._run(step, self._own_ids(level.tokens.view(-1)), positions)

    def _roots(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """Frontier rows of the roots that were fed, and their hidden states."""
        taken, trees = self._trees.roots(frontier)
        if not len(taken):
            return taken, None
        assert self._root_hidden is not None
        return taken, self._root_hidden[self._tensor(np.asarray(trees, dtype=np.int64))]

    def _level(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """Run the frontier through the draft: rows taken, and their hidden states."""
        rows, taken = self._trees.level(frontier)
        if not len(taken):
            return taken, None
        positions = self._node_positions(frontier.request[taken].tolist(), frontier.depth[taken])
        return taken, self._run_level(rows, frontier.token[taken], positions)

    def _node_positions(self, requests: Sequence[int], depths: np.ndarray) -> np.ndarray:
        """int64 [n], or [axes, n] with M-RoPE: of nodes that so many tokens follow their requests' roots."""
        positions = np.asarray([self._trees[index].root for index in requests], dtype=np.int64) + depths
        if not self._model_config.uses_mrope:
            return positions
        ids = self._runner.input_batch.req_ids
        states = [self._runner.requests[ids[self._trees[index].row]] for index in requests]
        deltas = np.asarray([state.mrope_position_delta for state in states], dtype=np.int64)
        return np.tile(positions + deltas, (self._model_config.mrope_num_dims, 1))

    def _ids(self, tokens: np.ndarray) -> torch.Tensor:
        """int32 [n] on the device: the draft's own ids of the target's tokens."""
        return self._tensor(tokens.astype(np.int32))
