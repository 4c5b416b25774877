"""The target's own first layers as drafter (FastVLM): see `draft.early_exit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig

from vllm_specvlm.engine.draft_cache import BlockTables
from vllm_specvlm.engine.draft_choice import DraftChoice
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.exit_network import ExitNetwork
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.token_drafter import TokenDrafter
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep
from vllm_specvlm.timeline.sight import SHARED, Sight

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(frozen=True, slots=True)
class ExitFeed:
    """One request's row in the first pass: its root. All before it is in the target's own cache."""

    row: int
    root: int

    @property
    def rows(self) -> int:
        """One."""
        return 1

    @property
    def root_spans(self) -> list[tuple[int, int]]:
        """Everything confirmed."""
        return [(0, self.root)]


class ExitDrafter(TokenDrafter[ExitFeed]):
    """Reads the target's paged K/V of its first layers, and keeps its trees' dense; it has nothing to catch up on."""

    _replicated = True

    def __init__(self, vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally) -> None:
        """Weights come with `load`."""
        super().__init__(vllm_config, options, tally, model_config=vllm_config.model_config)
        assert options.model is not None
        self._folder = options.model

    def load(self, target: Any) -> None:
        """Load the imitation network; `target` is vLLM's loaded model."""
        self._network = ExitNetwork(self._config, self._folder, target)

    @property
    def layers(self) -> list[str]:
        """As described there."""
        return self._network.layers

    @property
    def kept_bytes(self) -> int:
        """Nothing."""
        return 0

    @property
    def graphs(self) -> DraftGraphs:
        """As described there."""
        return self._network.graphs

    def capture(self, descriptor: Any) -> None:
        """As described there."""
        mrope = self._model_config.mrope_num_dims if self._model_config.uses_mrope else None
        self._network.capture(descriptor, mrope)

    def cache_allocated(self) -> None:
        """The KV cache exists."""
        self._choice = DraftChoice(self._runner, self._network.vocabulary)
        self._tables = BlockTables(self._runner, self._network.layers)

    def warm_up(self) -> None:
        """Nothing is compiled."""

    def backlog(self, request_id: str) -> int | None:
        """Nothing ever; None where a tree would pass the context's end."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        return None if self._root(row) is None else 0

    def sights(self, request_id: str) -> list[Sight]:
        """What the target sees: its layers read its own K/V."""
        features = self._runner.requests[request_id].mm_features
        return [Sight(feature.mm_position.get_num_embeds(), SHARED) for feature in features]

    def rehearse(self, rows: int, scored: int) -> None:
        """A pass without attention, and the likeliest tokens of some rows."""
        mrope = self._model_config.uses_mrope
        positions = np.zeros((self._model_config.mrope_num_dims, rows) if mrope else rows, dtype=np.int64)
        hidden = self._network.forward(self._ids(np.zeros(rows)), self._tensor(positions), None, None, None)
        self._network.logits(hidden[:scored]).topk(1)

    def finish(self, request_id: str) -> None:
        """Nothing is kept."""

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Nothing is kept."""

    def _root(self, row: int) -> int | None:
        root = int(self._runner.input_batch.num_tokens_no_spec[row]) - 1
        return None if root < 1 or root + self._depth >= self._model_config.max_model_len else root

    def _feed(self, request_id: str, room: int) -> ExitFeed | None:
        """Its root; None when there is no room."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        root = self._root(row)
        return None if root is None or room < 1 else ExitFeed(row, root)

    def _run_feeds(self, feeds: Sequence[ExitFeed]) -> None:
        """The roots' pass."""
        rows = [
            TreeRows(
                first_row=first_row,
                block_row=feed.row,
                spans=feed.root_spans,
                visible_upto=np.array([feed.root], dtype=np.int32),
                dense_start=start,
                dense_at=np.array([start], dtype=np.int32),
                ancestors=np.array([[1, 0]], dtype=np.uint64),
            )
            for first_row, (feed, start) in enumerate(zip(feeds, self._trees.dense_starts, strict=True))
        ]
        text = self._runner.input_batch.token_ids_cpu
        tokens = np.array([text[feed.row, feed.root] for feed in feeds], dtype=np.int64)
        positions = self._node_positions(self._trees.indexes, np.zeros(len(feeds), dtype=np.int64))
        self._root_hidden = self._run_level(rows, tokens, positions)

    def _own_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.int()

    def _run(self, step: TreeStep, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        slots = torch.full((len(ids),), -1, dtype=torch.int64, device=self._device)
        self._peers.agree()
        with self._tally.clock("draft_model"):
            return self._network.forward(ids, positions, step, self._tables.device_table(), slots)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._network.logits(hidden)
