"""What drafters with weights have in common: rows fed into vLLM's cache, then trees grown level by level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from vllm.config import VllmConfig

from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.device_trees import DeviceLevel, DeviceTrees
from vllm_specvlm.engine.draft_choice import DraftChoice, Place
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.growing_trees import GrowingTrees
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_memory import TreeMemory
from vllm_specvlm.engine.tree_step import TreeStep
from vllm_specvlm.timeline.sight import Sight
from vllm_specvlm.tree.grow import Frontier, LevelProposal

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class Fed(Protocol):
    """One request's rows in the pass over confirmed tokens."""

    @property
    def row(self) -> int:
        """Row in vLLM's input batch."""
        ...

    @property
    def root(self) -> int | None:
        """Position of the tree's root, or None while the request has not caught up."""
        ...

    @property
    def rows(self) -> int:
        """How many."""
        ...

    @property
    def root_spans(self) -> Sequence[tuple[int, int]]:
        """The cached positions that its tree may see."""
        ...


AFeed = TypeVar("AFeed", bound=Fed)


class ModelDrafter(ABC, Generic[AFeed]):
    """A `Drafter` with weights, whose K/V lie in the target's block tables.

    `open` feeds the confirmed tokens whose draft K/V is missing; `propose_level` runs one forward pass per level over
    the whole frontier, whose K/V stay dense. Nothing is fed while a prompt is being computed: the drafter catches up in
    bulk after the first token, at most `max_num_batched_tokens` rows a step, and a request that has not caught up has
    no tree yet.
    """

    _choice: DraftChoice
    _on_device: DeviceTrees
    _replicated: ClassVar[bool] = False
    """Every rank computes the whole draft. Other thread counts may give other last bits, so the first rank's candidates
    are everybody's."""

    def __init__(self, vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally, *, dense_root: bool) -> None:
        """Weights come with `load`; for `dense_root` see `GrowingTrees`."""
        self._config = vllm_config
        self._options = options
        self._tally = tally
        self._depth = options.shape().depth
        self._trees = GrowingTrees(options.shape(), dense_root=dense_root)

    @abstractmethod
    def load(self, target: Any) -> None:
        """Load the weights; `target` is vLLM's loaded model."""

    @property
    @abstractmethod
    def layers(self) -> list[str]:
        """Names of the attention layers that a pass goes through."""

    def bound_trees(self, rows: int, requests: int) -> int:
        """Keep K/V of trees in so many rows; returns how many requests can then be drafted for at once."""
        return self._trees.bound(rows, requests)

    def allocate_trees(self) -> None:
        """The memory of the trees, which is kept from now on."""
        memory = TreeMemory(self._config.compilation_config.static_forward_context, 0)
        memory.allocate(self._trees.store, self.layers, self._device)

    def profile_run(self, pictures: Mapping[str, Any] | None) -> None:
        """The widest pass there will be; `pictures` are the pixels of as many as are encoded at once, the largest."""
        self.rehearse(self._config.scheduler_config.max_num_batched_tokens, 1)

    @property
    @abstractmethod
    def kept_bytes(self) -> int:
        """What it keeps on the device at most, beside K/V."""

    @property
    @abstractmethod
    def graphs(self) -> DraftGraphs:
        """The CUDA graphs of its passes."""

    @abstractmethod
    def capture(self, descriptor: Any) -> None:
        """Capture a CUDA graph of a pass of so many rows, while vLLM captures the target's (`BatchDescriptor`)."""

    def bind(self, runner: Batch, peers: Peers) -> None:
        """The runner whose batch, block tables and positions are used, and the other ranks."""
        self._runner = runner
        self._peers = peers
        self._device = runner.device

    @property
    def grows_on_device(self) -> bool:
        """Whether `propose_on_device` is to be used: ranks have to talk between levels, and that takes a host."""
        return self._peers.alone and self._runner.grows_on_device(self.layers)

    @property
    def device(self) -> torch.device:
        """See `DeviceProposer`."""
        return self._device

    @abstractmethod
    def cache_allocated(self) -> None:
        """The KV cache exists: make the validity marks of its blocks."""

    @abstractmethod
    def warm_up(self) -> None:
        """Compile, when compilation is on."""

    @abstractmethod
    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Before a step: what is over, what starts anew, which blocks changed hands."""

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        """Nothing to note: tokens are read from vLLM's batch when they are fed."""

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        """As `begin`."""

    @abstractmethod
    def backlog(self, request_id: str) -> int | None:
        """See `Drafter`."""

    @abstractmethod
    def rehearse(self, rows: int, scored: int) -> None:
        """See `Drafter`."""

    @abstractmethod
    def finish(self, request_id: str) -> None:
        """See `Drafter`."""

    @abstractmethod
    def sights(self, request_id: str) -> list[Sight]:
        """What it sees of each picture of a request that has been fed; for people to see, not for speed."""

    def open(self, request_ids: Sequence[str]) -> Opening:
        """Feed what is missing; the requests that have then caught up have a root."""
        self._choice.learn()
        self._trees.clear(len(request_ids))
        room = self._config.scheduler_config.max_num_batched_tokens
        feeds: list[AFeed] = []
        for index, request_id in enumerate(request_ids):
            feed = self._feed(request_id, room)
            if feed is None:
                continue
            room -= feed.rows
            feeds.append(feed)
            if feed.root is not None:
                self._trees.add(index, feed.row, feed.root, feed.root_spans)
        if feeds:
            self._run_feeds(feeds)
        behind = frozenset(range(len(request_ids))) - set(self._trees.indexes)
        return Opening(sum(feed.rows for feed in feeds), behind)

    @abstractmethod
    def _feed(self, request_id: str, room: int) -> AFeed | None:
        """What to feed for a request in at most `room` rows; None when there is nothing, or no room."""

    @abstractmethod
    def _run_feeds(self, feeds: Sequence[AFeed]) -> None:
        """One pass over all feeds; what the roots' rows came to is kept, in the order of `_trees`."""

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        """Children of the frontier's nodes; requests not caught up, or with a full segment, get none."""
        proposal = LevelProposal(
            np.zeros((len(frontier.node), top_k), dtype=np.int64),
            np.full((len(frontier.node), top_k), -np.inf, dtype=np.float32),
        )
        is_root = bool(len(frontier.depth)) and int(frontier.depth[0]) == 0
        taken, hidden = self._roots(frontier) if is_root else self._level(frontier)
        if len(taken):
            assert hidden is not None
            self._tally.levels += 1
            places = [self._child(int(frontier.request[row]), int(frontier.depth[row])) for row in taken]
            found = self._candidates(hidden, places, top_k)
            proposal.tokens[taken, : found.tokens.shape[1]] = found.tokens
            proposal.log_probs[taken, : found.tokens.shape[1]] = found.log_probs
        return proposal

    @abstractmethod
    def _roots(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """Frontier rows of the roots that were fed, and their hidden states."""

    @abstractmethod
    def _level(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """Run a deeper frontier: rows taken, and their hidden states."""

    def _candidates(self, hidden: torch.Tensor, places: Sequence[Place], top_k: int) -> LevelProposal:
        """The likeliest next tokens of [rows, hidden]."""
        # Logits of a shared-out vocabulary are a collective, which no rank may enter alone.
        self._peers.agree()
        with self._tally.clock("draft_model"):
            found = self._choice.candidates(self._logits(hidden), places, top_k)
        if not self._replicated:
            return found
        self._peers.agree()
        return cast(LevelProposal, self._peers.share([found])[0])

    @property
    def rooted(self) -> Sequence[int]:
        """See `DeviceProposer`."""
        return self._trees.indexes

    @property
    def noted(self) -> list[torch.Tensor]:
        """See `DeviceProposer`."""
        return self._choice.noted

    def settle(self, noted: Sequence[np.ndarray]) -> None:
        """See `DeviceProposer`."""
        self._choice.settle(noted)

    def open_levels(self, widths: Sequence[int]) -> None:
        """See `DeviceProposer`."""
        self._on_device = self._trees.on_device(self._device, widths, fast=self._options.fast_attention)

    def propose_on_device(self, level: DeviceLevel, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `DeviceProposer`."""
        taken = None
        if level.depth:
            step, taken = self._on_device.level(level)
            hidden = self._level_on_device(level, step)
        else:
            hidden = self._roots_on_device()
        self._tally.levels += 1
        width = level.live.shape[1]
        places = [place for index in self.rooted for place in [self._child(index, level.depth)] * width]
        with self._tally.clock("draft_model"):
            tokens, log_probs = self._choice.choose(self._logits(hidden), places, top_k)
        return tokens, log_probs if taken is None else log_probs.masked_fill(~taken.view(-1, 1), -torch.inf)

    @abstractmethod
    def _roots_on_device(self) -> torch.Tensor:
        """[R, hidden] of the roots that were fed, in the order of `_trees`."""

    @abstractmethod
    def _level_on_device(self, level: DeviceLevel, step: TreeStep) -> torch.Tensor:
        """[R * w, hidden] of a deeper level's nodes; padding has any."""

    @abstractmethod
    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, the draft's vocabulary]."""

    def _child(self, index: int, depth: int) -> Place:
        """Request and position of the children of a node of this depth."""
        tree = self._trees[index]
        return self._runner.input_batch.req_ids[tree.row], tree.root + depth + 1

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return upload(array, self._device)
