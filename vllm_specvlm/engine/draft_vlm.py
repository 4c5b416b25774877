"""A second, smaller VLM as drafter (Spec-LLaVA): own weights, own vision tower, KV in the target's block tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_specvlm.compress.compressor import count
from vllm_specvlm.compress.origins import origins
from vllm_specvlm.engine.draft_cache import DraftCache
from vllm_specvlm.engine.draft_choice import DraftChoice
from vllm_specvlm.engine.draft_feed import Feed, complement, feed_rows
from vllm_specvlm.engine.draft_graphs import DraftGraphs
from vllm_specvlm.engine.draft_network import DraftNetwork
from vllm_specvlm.engine.draft_vision import DraftVision, left_out, place
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.pair import draft_model_config, map_tokens
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.engine.token_drafter import TokenDrafter
from vllm_specvlm.engine.tree_step import TreeStep
from vllm_specvlm.timeline.sight import ALL, BLIND, Sight

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_input_batch import CachedRequestState


class DraftVLM(TokenDrafter[Feed]):
    """Drafts with a VLM that vLLM loads beside the target."""

    def __init__(self, vllm_config: VllmConfig, options: SpecVLMOptions, tally: Tally) -> None:
        """Read the draft's configuration; weights come with `load`."""
        assert options.model is not None
        target = vllm_config.model_config
        config = draft_model_config(options.model, target, token_map=options.token_map)
        super().__init__(vllm_config, options, tally, model_config=config)
        self._map = map_tokens(target, config) if options.token_map else None
        self._vocabulary = config.get_vocab_size()
        if self._map is None:
            self._vocabulary = min(self._vocabulary, target.get_vocab_size())
        self._fed: dict[str, int] = {}
        self._holes: dict[str, list[tuple[int, int]]] = {}
        self._left_out: dict[str, list[tuple[int, int]]] = {}

    def load(self, target: object) -> None:
        """Load the draft's weights; of the `target` it shares nothing."""
        self._network = DraftNetwork(self._config, self._model_config)

    @property
    def layers(self) -> list[str]:
        """As described there."""
        return self._network.layers

    def profile_run(self, pictures: Mapping[str, Any] | None) -> None:
        """The tower too, if there are pictures for it."""
        if pictures is not None and self._network.sees:
            self._network.encode(**pictures)
        super().profile_run(pictures)

    @property
    def kept_bytes(self) -> int:
        """Encoded pictures."""
        return self._options.vision_cache_mib << 20 if self._network.sees else 0

    @property
    def graphs(self) -> DraftGraphs:
        """As described there."""
        return self._network.graphs

    def capture(self, descriptor: Any) -> None:
        """As described there."""
        mrope = self._model_config.mrope_num_dims if self._model_config.uses_mrope else None
        self._network.capture(descriptor, mrope, self._device)

    def cache_allocated(self) -> None:
        """The KV cache exists: make the validity marks of its blocks."""
        if self._map is None:
            self._choice = DraftChoice(self._runner)
        else:
            self._choice = DraftChoice(self._runner, self._tensor(self._map.meant))
            self._drafted = self._tensor(self._map.drafted)
            self._stand_ins = self._tensor(self._map.stand_ins.astype(np.int32))
        self._cache = DraftCache(self._runner, self._network.layers)
        encode = self._encode if self._network.sees else None
        capacity = self._options.vision_cache_mib << 20
        at_once = self._config.scheduler_config.max_num_encoder_input_tokens
        self._vision = DraftVision(encode, capacity, self._device, may_miss=self._peers.alone, at_once=at_once)

    def _encode(self, **pictures: Any) -> Sequence[torch.Tensor]:
        """A pass of the draft's tower: ranks enter it together or not at all, as its layers wait for each other."""
        self._peers.agree()
        return self._network.encode(**pictures)

    def warm_up(self) -> None:
        """One pass without attention, which compiles the draft when compilation is on."""
        self.rehearse(self._config.scheduler_config.max_num_batched_tokens, 1)

    def backlog(self, request_id: str) -> int | None:
        """Confirmed tokens before the root whose K/V the draft does not have; None beyond its context."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        root = int(self._runner.input_batch.num_tokens_no_spec[row]) - 1
        if root + self._depth >= self._model_config.max_model_len:
            return None
        if request_id not in self._fed:
            # Looked up once: what its blocks held when it came. Tokens since then are missing.
            missing = self._missing(request_id, row, root)
            self._fed[request_id] = int(missing[0]) if len(missing) else root
        fed = self._fed[request_id]
        return root - fed - sum(max(0, min(stop, root) - max(start, fed)) for start, stop in self._dropped(request_id))

    def _missing(self, request_id: str, row: int, root: int) -> np.ndarray:
        """int64, ascending: positions below the root that were not fed and are not dropped."""
        missing = self._cache.blocks.missing(self._cache.table(row), self._fed.get(request_id, 0), root)
        return _outside(missing, self._dropped(request_id))

    def _dropped(self, request_id: str) -> list[tuple[int, int]]:
        """The rests of pictures' places: their few tokens stand in the first ones."""
        compressor = self._network.compressor
        if compressor is None:
            return []
        if request_id not in self._left_out:
            places = [feature.mm_position for feature in self._runner.requests[request_id].mm_features]
            self._left_out[request_id] = [
                stretch for at in places for stretch in left_out(at, count(compressor.config, at.get_num_embeds()))
            ]
        return self._left_out[request_id]

    def rehearse(self, rows: int, scored: int) -> None:
        """A pass without attention, and the likeliest tokens of some rows."""
        mrope = self._model_config.uses_mrope
        positions = np.zeros((self._model_config.mrope_num_dims, rows) if mrope else rows, dtype=np.int64)
        hidden = self._network.forward(self._ids(np.zeros(rows)), self._tensor(positions), None, None, None)
        self._network.logits(hidden[:scored], self._vocabulary).topk(1)

    def finish(self, request_id: str) -> None:
        """Forget the request; its blocks keep their marks, since vLLM may still share them."""
        self._fed.pop(request_id, None)
        self._holes.pop(request_id, None)
        self._left_out.pop(request_id, None)

    def sights(self, request_id: str) -> list[Sight]:
        """All of a picture's tokens, from its own tower, or what its compressor leaves; none of one that is a hole."""
        holes = self._holes.get(request_id, [])
        return [self._sight(feature, holes) for feature in self._runner.requests[request_id].mm_features]

    def _sight(self, feature: MultiModalFeatureSpec, holes: Sequence[tuple[int, int]]) -> Sight:
        place, compressor = feature.mm_position, self._network.compressor
        tokens = self._vision.embeddings([feature]).get(feature.identifier) if compressor is not None else None
        if (place.offset, place.offset + place.length) in holes:
            return Sight(place.get_num_embeds(), BLIND)
        if compressor is None:
            return Sight(place.get_num_embeds(), ALL)
        if tokens is None:  # dropped since
            return Sight(place.get_num_embeds(), compressor.config.kind)
        with torch.inference_mode():
            shares = origins(compressor, tokens, tokens.new_zeros(tokens.shape[-1]))
        return Sight.compressed(compressor.config.kind, shares.tolist(), len(tokens))

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Clear the marks of blocks handed out afresh; a resumed request starts from what its blocks hold."""
        for new in scheduled.scheduled_new_reqs:
            self._vision.keep(new.mm_features)
        for request_id in scheduled.scheduled_cached_reqs.resumed_req_ids:
            self._fed.pop(request_id, None)
        self._cache.observe_schedule(scheduled)

    def _feed(self, request_id: str, room: int) -> Feed | None:
        """What to feed for a request in at most `room` rows; None when there is nothing, or no room."""
        row = self._runner.input_batch.req_id_to_index[request_id]
        state = self._runner.requests[request_id]
        root = int(self._runner.input_batch.num_tokens_no_spec[row]) - 1
        if root + self._depth >= self._model_config.max_model_len:
            return None
        missing = self._missing(request_id, row, root)
        written, later = missing[:room], missing[room:]
        pictures = self._look(request_id, state, written)
        holes = [*self._holes.get(request_id, []), *self._dropped(request_id)]
        written = _outside(written, holes)
        upto = int(later[0]) if len(later) else root
        caught_up = not len(later) and len(written) < room
        if not caught_up and not len(written):
            self._fed[request_id] = upto
            return None
        return Feed(request_id, row, written, root if caught_up else None, upto, complement(holes, upto), pictures)

    def _look(
        self, request_id: str, state: CachedRequestState, missing: np.ndarray
    ) -> list[tuple[MultiModalFeatureSpec, torch.Tensor]]:
        """Pictures among the missing positions with their embeddings; those that cannot be seen become holes."""
        spans = [
            (feature, feature.mm_position.offset, feature.mm_position.offset + feature.mm_position.length)
            for feature in state.mm_features
        ]
        wanted = [
            (feature, start, stop)
            for feature, start, stop in spans
            if np.searchsorted(missing, start) < np.searchsorted(missing, stop)
        ]
        if not wanted:
            return []
        seen = self._vision.embeddings([feature for feature, _, _ in wanted])
        for feature, start, stop in wanted:
            if feature.identifier not in seen:
                self._holes.setdefault(request_id, []).append((start, stop))
        return [
            (feature, self._compressed(seen[feature.identifier]))
            for feature, _, _ in wanted
            if feature.identifier in seen
        ]

    def _compressed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the draft reads of a picture's tokens [n, hidden]."""
        if self._network.compressor is None:
            return tokens
        kind = self._network.compressor.config.kind
        self._tally.compressions[kind] = self._tally.compressions.get(kind, 0) + 1
        with self._tally.clock("draft_model"):
            return self._network.compress(tokens)

    def _run_feeds(self, feeds: Sequence[Feed]) -> None:
        """One forward pass over all feeds; keeps the roots' hidden states."""
        starts = iter(self._trees.dense_starts)
        rows, ids, positions, slots, masks, pictures, roots = [], [], [], [], [], [], []
        first_row = 0
        for feed in feeds:
            at = feed.positions
            rows.append(feed_rows(feed, first_row, next(starts) if feed.root is not None else 0))
            ids.append(self._runner.input_batch.token_ids_cpu[feed.row, at])
            positions.append(self._rope_positions(feed.request_id, at))
            slot = np.full(len(at), -1, dtype=np.int64)
            slot[: len(feed.written)] = self._cache.blocks.slots(self._cache.table(feed.row), feed.written)
            slots.append(slot)
            mask = np.zeros(len(at), dtype=bool)
            for feature, embeddings in feed.pictures:
                inside, chosen = place(feature, embeddings, feed.written)
                mask[: len(inside)] |= inside
                pictures.append(chosen)
            masks.append(mask)
            first_row += len(at)
            if feed.root is not None:
                roots.append(first_row - 1)
        step = TreeStep.build(
            rows, self._trees.store, self._device, covers_batch=True, fast=self._options.fast_attention
        )
        hidden = self._forward(
            step,
            self._ids(np.concatenate(ids)),
            self._tensor(np.concatenate(positions, axis=-1)),
            self._tensor(np.concatenate(slots)),
            pictures,
            np.concatenate(masks),
        )
        for feed in feeds:
            self._cache.blocks.mark(self._cache.table(feed.row), feed.written)
            self._fed[feed.request_id] = feed.upto
        self._root_hidden = hidden[self._tensor(np.asarray(roots, dtype=np.int64))]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._network.logits(hidden, self._vocabulary)
        return logits if self._map is None else logits[:, self._drafted]

    def _ids(self, tokens: np.ndarray) -> torch.Tensor:
        """int32: the draft's own ids of the target's tokens."""
        return super()._ids(tokens if self._map is None else self._map.stand_ins[tokens.astype(np.int64)])

    def _own_ids(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.int() if self._map is None else self._stand_ins[tokens]

    def _run(self, step: TreeStep, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        slots = torch.full((len(ids),), -1, dtype=torch.int64, device=self._device)
        return self._forward(step, ids, positions, slots, (), None)

    def _forward(
        self,
        step: TreeStep,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        pictures: Sequence[torch.Tensor],
        is_picture: np.ndarray | None,
    ) -> torch.Tensor:
        table = self._cache.device_table()
        self._peers.agree()
        with self._tally.clock("draft_model"):
            return self._network.forward(
                ids,
                positions,
                step,
                table,
                slots,
                pictures,
                None if is_picture is None else torch.from_numpy(is_picture),
            )

    def _rope_positions(self, request_id: str, positions: np.ndarray) -> np.ndarray:
        """int64 [n], or [3, n] with M-RoPE: the prompt's own positions, then all axes together."""
        if not self._model_config.uses_mrope:
            return positions
        state = self._runner.requests[request_id]
        assert state.mrope_positions is not None and state.mrope_position_delta is not None
        rotary = np.tile(positions + state.mrope_position_delta, (len(state.mrope_positions), 1))
        prompt = positions < state.num_prompt_tokens
        rotary[:, prompt] = state.mrope_positions.numpy()[:, positions[prompt]]
        return rotary


def _outside(positions: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Those of `positions` that lie in none of the spans."""
    for start, stop in spans:
        positions = positions[(positions < start) | (positions >= stop)]
    return positions
