"""A head on the target's own features as drafter (EAGLE; SpecVLM): one layer, seeing pictures in few visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig

from vllm_specvlm.compress.compressor import Compressed
from vllm_specvlm.draft.head_config import read_config
from vllm_specvlm.engine import global_vectors
from vllm_specvlm.engine.device_trees import DeviceLevel
from vllm_specvlm.engine.draft_choice import DraftChoice
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.feature_cache import FeatureCache
from vllm_specvlm.engine.feature_context import FeatureContext, Span, in_spans
from vllm_specvlm.engine.feature_feed import FeatureFeed, spread
from vllm_specvlm.engine.feature_network import FeatureNetwork
from vllm_specvlm.engine.feature_store import FeatureStore
from vllm_specvlm.engine.growing_tree import GrowingTree
from vllm_specvlm.engine.model_drafter import ModelDrafter
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.target_pictures import TargetPictures
from vllm_specvlm.engine.transfer import upload
from vllm_specvlm.engine.tree_step import TreeRows, TreeStep
from vllm_specvlm.timeline.sight import BLIND, Sight
from vllm_specvlm.tree.grow import Frontier

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class FeatureDrafter(ModelDrafter[FeatureFeed]):
    """Drafts with a feature head (`draft.feature_head`).

    `keep_features` notes the target's features as they are computed. The last slot that `open` feeds gives the tree's
    first level; in deeper ones the head's own output stands in the place of features.
    """

    _replicated = True

    def __init__(self, vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally) -> None:
        """Read the head's configuration; weights come with `load`."""
        super().__init__(vllm_config, options, tally, dense_root=False)
        assert options.model is not None
        self._folder = options.model
        self.head_config, _ = read_config(options.model)
        self._contexts: dict[str, FeatureContext] = {}
        self._features = FeatureStore(options.feature_cache_mib << 20)
        self._pictures = TargetPictures(options.vision_cache_mib << 20, self.head_config.hidden_size)
        self._states: torch.Tensor | None = None
        self._state_of = np.empty(0, dtype=np.int64)

    def load(self, target: Any) -> None:
        """Load the head's weights; `target` is vLLM's loaded model."""
        self._network = FeatureNetwork(self._config, self._folder, target)

    @property
    def layers(self) -> list[str]:
        """As described there."""
        return self._network.layers

    @property
    def kept_bytes(self) -> int:
        """Features that it was not fed with yet, and visual tokens of the target's."""
        pictures = self._options.vision_cache_mib if self._network.head.sees else 0
        return (self._options.feature_cache_mib + pictures) << 20

    @property
    def graphs(self) -> DraftGraphs:
        """As described there."""
        return self._network.graphs

    def capture(self, descriptor: Any) -> None:
        """As described there."""
        self._network.capture(descriptor)

    def cache_allocated(self) -> None:
        """The KV cache exists: make the validity marks of its blocks."""
        self._choice = DraftChoice(self._runner, self._network.vocabulary)
        self._cache = FeatureCache(self._runner, self._network.layers)

    def warm_up(self) -> None:
        """Nothing is compiled."""

    def keep_features(self, confirmed: Mapping[str, tuple[int, np.ndarray]], hidden: torch.Tensor) -> None:
        """After a step of the target.

        Args:
            confirmed: per request the first position it computed, and the batch rows of the confirmed positions from
                there on.
            hidden: [batch rows, features].
        """
        for request_id, (first, rows) in confirmed.items():
            positions = first + np.arange(len(rows))
            # Features of pictures' slots are never read: visual tokens stand there.
            text = ~in_spans(self._pictures_of(request_id), positions)
            self._features.keep(request_id, positions[text], hidden[upload(rows[text], hidden.device)])

    def _pictures_of(self, request_id: str) -> list[Span]:
        ahead = int(self.head_config.reads_ahead)
        places = [(each.identifier, each.mm_position) for each in self._runner.requests[request_id].mm_features]
        return [
            Span(identifier, max(place.offset - ahead, 0), place.offset + place.length - ahead)
            for identifier, place in places
        ]

    def keep_pictures(self, encoded: Mapping[str, torch.Tensor]) -> None:
        """After a step of the target: its encoder's cache."""
        if self._network.head.sees:
            self._pictures.keep(encoded)

    def backlog(self, request_id: str) -> int | None:
        """Slots before the root's that can be fed; None where the head cannot draft."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        root = int(self._runner.input_batch.num_tokens_no_spec[row]) - 1
        if self._beyond(root):
            return None
        if not self._features.holds(request_id, root - 1):
            return None
        context = self._context(request_id, row, root)
        if context.counted is None:
            context.counted = (root, len(self._missing(request_id, row, root)))
        since, count = context.counted
        return count + (root - since) - 1

    def _beyond(self, root: int) -> bool:
        most = min(self.head_config.max_position_embeddings, self._config.model_config.max_model_len)
        return root < 1 or root + self._depth >= most

    def sights(self, request_id: str) -> list[Sight]:
        """What the compressor leaves, found out by compressing once more."""
        row, context = self._runner.input_batch.req_id_to_index[request_id], self._contexts[request_id]
        return [self._sight(row, context, span) for span in context.pictures]

    def _sight(self, row: int, context: FeatureContext, span: Span) -> Sight:
        tokens = self._pictures.get(span.identifier)
        # Slots that were never fed are not seen, whatever the compressor would make of the picture.
        if tokens is None or not context.visible[span.start : span.stop].any():
            return Sight(span.stop - span.start if tokens is None else len(tokens), BLIND)
        how, origins = self._network.origins(tokens, self._text_before(row, context, span, tokens))
        return Sight.compressed(how, origins.tolist(), len(tokens))

    def rehearse(self, rows: int, scored: int) -> None:
        """A pass without attention, and the likeliest tokens of some rows."""
        tokens = torch.zeros(rows, dtype=torch.int32, device=self._device)
        embedded = self._network.embed(tokens)
        hidden = self._network.forward(embedded, embedded, tokens.long(), None, None, None)
        self._network.logits(hidden[:scored]).topk(1)

    def finish(self, request_id: str) -> None:
        """Nothing is kept only for requests that were drafted for: see `observe_schedule`."""

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Forget what is over; clear the marks of blocks handed out afresh."""
        anew = [request.req_id for request in scheduled.scheduled_new_reqs]
        for request_id in (*scheduled.finished_req_ids, *anew, *scheduled.scheduled_cached_reqs.resumed_req_ids):
            self._contexts.pop(request_id, None)
            self._features.forget(request_id)
        self._cache.observe_schedule(scheduled)

    def _feed(self, request_id: str, room: int) -> FeatureFeed | None:
        """What to feed for a request in at most `room` slots; its context counts them as visible from now on."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        root = int(self._runner.input_batch.num_tokens_no_spec[row]) - 1
        if self._beyond(root):
            return None
        missing = self._missing(request_id, row, root)
        slots, later = missing[:room], missing[room:]
        if not len(slots):
            return None
        caught_up = not len(later) and slots[-1] == root - 1
        context = self._contexts[request_id]
        self._cache.mark(row, context, slots)
        return FeatureFeed(
            request_id, row, context, slots, int(later[0]) if len(later) else root, root if caught_up else None
        )

    def _missing(self, request_id: str, row: int, root: int) -> np.ndarray:
        """int64: slots below the root that can be fed."""
        context = self._context(request_id, row, root)
        return context.missing(root, self._features.held(request_id), lambda span: self._compress(row, context, span))

    def _context(self, request_id: str, row: int, root: int) -> FeatureContext:
        context = self._contexts.get(request_id)
        if context is None:
            context = self._contexts[request_id] = self._first_look(request_id, row, root)
        return context

    def _first_look(self, request_id: str, row: int, root: int) -> FeatureContext:
        """What the request's blocks held when it came."""
        visible = np.zeros(self._config.model_config.max_model_len, dtype=bool)
        visible[:root] = self._cache.trusted(row, root)
        return FeatureContext(
            self._pictures_of(request_id),
            visible,
            reads_ahead=self.head_config.reads_ahead,
            has_vectors=self.head_config.compressor.gives_vectors,
        )

    def _compress(self, row: int, context: FeatureContext, span: Span) -> Compressed | None:
        """A picture's few visual tokens; they depend on it and on the text before it, as its blocks do."""
        if not self._network.head.sees:
            return None
        tokens = self._pictures.get(span.identifier)
        if tokens is None or not len(tokens):
            return None
        with self._tally.clock("draft_model"):
            compressed = self._network.compress(tokens, self._text_before(row, context, span, tokens))
        # A gate on the edge may tip over on one rank only; ranks must feed the same slots.
        self._peers.agree()
        if not self._peers.alone:
            (shared,) = self._peers.share([compressed.to(torch.device("cpu"))])
            compressed = shared.to(tokens.device)
        name = self._network.primitive(compressed)
        self._tally.compressions[name] = self._tally.compressions.get(name, 0) + 1
        return compressed

    def _text_before(self, row: int, context: FeatureContext, span: Span, tokens: torch.Tensor) -> torch.Tensor:
        """[hidden]: mean embedding of the text before a picture; zeros without text, or a gate that asks for it."""
        positions = np.arange(span.start)
        before = self._runner.input_batch.token_ids_cpu[row, positions[~context.in_picture(positions)]]
        total = torch.zeros(tokens.shape[-1], dtype=torch.float64, device=tokens.device)
        if not len(before) or not self._network.gated:
            return total.to(tokens.dtype)
        room = self._config.scheduler_config.max_num_batched_tokens
        for start in range(0, len(before), room):
            total += self._embed_tokens(before[start : start + room]).double().sum(dim=0)
        return (total / len(before)).to(tokens.dtype)

    def _embed_tokens(self, tokens: np.ndarray) -> torch.Tensor:
        """[n, hidden]. The target's table is shared out among the ranks, so this is a collective."""
        self._peers.agree()
        return self._network.embed(self._tensor(tokens.astype(np.int32)))

    def _run_feeds(self, feeds: Sequence[FeatureFeed]) -> None:
        """One pass over all feeds; keeps the roots' states."""
        rows, inputs, slots, vectors, roots = [], [], [], [], []
        first_row = 0
        for feed in feeds:
            rows.append(feed.tree_rows(first_row))
            inputs.append(self._inputs(feed))
            vectors.append(global_vectors.of_slots(feed.context, feed.slots))
            slots.append(self._cache.blocks.slots(self._cache.table(feed.row), feed.slots))
            first_row += len(feed.slots)
            if feed.root is not None:
                roots.append(first_row - 1)
        state, embeddings, visual, is_visual = zip(*inputs, strict=True)
        hidden = self._forward(
            rows,
            torch.cat(state),
            torch.cat(embeddings),
            np.concatenate([feed.slots for feed in feeds]),
            np.concatenate(slots),
            torch.cat(visual),
            torch.cat(is_visual),
            global_vectors.together(vectors, state),
        )
        for feed in feeds:
            feed.context.advance(feed.upto)
            self._features.drop_before(feed.request_id, feed.upto)
        self._states = hidden[self._tensor(np.asarray(roots, dtype=np.int64))]

    def _inputs(self, feed: FeatureFeed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """States and embeddings [slots, hidden], visual tokens [n, hidden], and which slots they stand in."""
        context, slots = feed.context, feed.slots
        pictured = context.in_picture(slots)
        text = slots[~pictured]
        embeddings = self._embed(feed.row, context, text)
        state = embeddings
        if len(text):
            state = self._network.state(self._features.read(feed.request_id, text))
        visual = [
            found.tokens[upload(_within(slots, span) - context.first_token(span), found.tokens.device)]
            for span in context.pictures
            if (found := context.compressed.get(span.start)) is not None
        ]
        is_visual = self._tensor(pictured)
        if not pictured.any():
            return state, embeddings, state[:0], is_visual
        return spread(state, pictured), spread(embeddings, pictured), torch.cat(visual), is_visual

    def _embed(self, row: int, context: FeatureContext, slots: np.ndarray) -> torch.Tensor:
        """[slots, hidden]: embeddings of the tokens behind text slots, zeros for placeholders."""
        tokens = self._runner.input_batch.token_ids_cpu[row, slots + 1].copy()
        pictured = context.before_picture(slots)
        tokens[pictured] = 0
        embeddings = self._embed_tokens(tokens)
        if pictured.any():
            embeddings = embeddings.masked_fill(self._tensor(pictured)[:, None], 0.0)
        return embeddings

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._network.logits(hidden)

    def _roots(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """As described there; `_states` are put in their order."""
        taken, trees = self._trees.roots(frontier)
        self._settle(len(frontier.node), taken)
        if len(taken):
            assert self._states is not None
            self._states = self._states[self._tensor(np.asarray(trees, dtype=np.int64))]
        return taken, self._states

    def _level(self, frontier: Frontier) -> tuple[np.ndarray, torch.Tensor | None]:
        """As described there; the rows' states replace their parents' in `_states`."""
        parents = self._state_of[frontier.parent_row]
        rows, taken = self._trees.level(frontier)
        self._settle(len(frontier.node), taken)
        if not len(taken):
            return taken, None
        assert self._states is not None
        trees = [self._trees[index] for index in frontier.request[taken].tolist()]
        # The node that follows the root by d tokens stands in the slot before its position.
        positions = np.asarray([tree.root for tree in trees], dtype=np.int64) + frontier.depth[taken] - 1
        embeddings = self._embed_tokens(frontier.token[taken])
        vectors = global_vectors.of_nodes([self._context_of(tree) for tree in trees])
        slots = np.full(len(taken), -1, dtype=np.int64)
        self._states = self._forward(
            rows, self._states[self._tensor(parents[taken])], embeddings, positions, slots, None, None, vectors
        )
        return taken, self._states

    def _roots_on_device(self) -> torch.Tensor:
        assert self._states is not None
        return self._states

    def open_levels(self, widths: Sequence[int]) -> None:
        """Also the roots' positions, and the vectors that all nodes of a tree get."""
        super().open_levels(widths)
        trees = [self._trees[index] for index in self._trees.indexes]
        self._roots_at = self._tensor(np.asarray([[tree.root] for tree in trees], dtype=np.int64))
        self._lines = torch.arange(len(trees), device=self._device)[:, None]
        self._latest = global_vectors.of_nodes([self._context_of(tree) for tree in trees])

    def _level_on_device(self, level: DeviceLevel, step: TreeStep) -> torch.Tensor:
        """As `_level`: the rows' states replace their parents'."""
        assert self._states is not None
        lines, width = level.tokens.shape
        parents = level.parent_rows + self._lines * (len(self._states) // lines)
        embeddings = self._network.embed(level.tokens.view(-1).int())
        vectors = None if self._latest is None else self._latest.repeat_interleave(width, dim=0)
        positions = (self._roots_at + (level.depth - 1)).expand(-1, width).reshape(-1)
        slots = torch.full((lines * width,), -1, dtype=torch.int64, device=self._device)
        states = self._states[parents.view(-1)]
        self._states = self._run(step, states, embeddings, positions, slots, None, None, vectors)
        return self._states

    def _context_of(self, tree: GrowingTree) -> FeatureContext:
        return self._contexts[self._runner.input_batch.req_ids[tree.row]]

    def _settle(self, rows: int, taken: np.ndarray) -> None:
        """Note which of `_states` each row of the frontier has."""
        self._state_of = np.full(rows, -1, dtype=np.int64)
        self._state_of[taken] = np.arange(len(taken))

    def _forward(
        self,
        rows: Sequence[TreeRows],
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: np.ndarray,
        slots: np.ndarray,
        visual: torch.Tensor | None,
        is_visual: torch.Tensor | None,
        vectors: torch.Tensor | None,
    ) -> torch.Tensor:
        step = TreeStep.build(
            rows, self._trees.store, self._device, covers_batch=True, fast=self._options.fast_attention
        )
        at, to = self._tensor(positions), self._tensor(slots)
        return self._run(step, state, embeddings, at, to, visual, is_visual, vectors)

    def _run(
        self,
        step: TreeStep,
        state: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        visual: torch.Tensor | None,
        is_visual: torch.Tensor | None,
        vectors: torch.Tensor | None,
    ) -> torch.Tensor:
        self._peers.agree()
        with self._tally.clock("draft_model"):
            return self._network.forward(
                state,
                embeddings,
                positions,
                step,
                self._cache.device_table(),
                slots,
                visual if visual is not None and len(visual) else None,
                is_visual,
                vectors,
            )


def _within(slots: np.ndarray, span: Span) -> np.ndarray:
    """Those of the slots that are the picture's."""
    return slots[(slots >= span.start) & (slots < span.stop)]
