"""Drafting for the batch: who gets a tree, from which drafter, and what happens when the drafter fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.draft.lookup import LookupDrafter
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.draft_vlm import DraftVLM
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.options import METHOD, SpecVLMOptions
from vllm_specvlm.engine.peers import PeerFailedError, Peers
from vllm_specvlm.engine.sampling import plain_reason
from vllm_specvlm.engine.tally import Tally
from vllm_specvlm.tree.accept import Accepted
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.grow import grow
from vllm_specvlm.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

    from vllm_specvlm.engine.verification import TreePlace

logger = logger_for(__name__)


_STOCK_RUNNER = (
    "Method 'specvlm' was configured by hand; start the engine with "
    '--speculative-config \'{"method": "specvlm", ...}\' and without --worker-cls.'
)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A request that may have a tree of so many nodes and levels."""

    request_id: str
    nodes: int
    depth: int


class Speculator:
    """vLLM's proposer object of a `specvlm` engine: owns the drafter and keeps its failures away from requests."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        """As vLLM builds a custom proposer: from the engine's configuration alone."""
        given = vllm_config.additional_config.get(METHOD)
        if given is None:
            raise ValueError(_STOCK_RUNNER)
        self.options = SpecVLMOptions.parse(given)
        self.shape = self.options.shape()
        self.tally = Tally()
        self._logprobs_mode: str = vllm_config.model_config.logprobs_mode
        self._vlm: DraftVLM | None = None
        self._drafter: Drafter | None
        if self.options.model is None:
            self._drafter = LookupDrafter(
                min_match=self.options.lookup_min_match,
                max_match=self.options.lookup_max_match,
                shared_tokens=self.options.lookup_shared_tokens,
                barrier_tokens=_placeholder_ids(vllm_config),
                vocabulary=vllm_config.model_config.get_vocab_size(),
            )
        else:
            self._vlm = DraftVLM(vllm_config, self.options, self.tally)
            self._drafter = self._vlm
        self._failure: Exception | None = None
        self._known: dict[str, int] = {}
        self._plain: dict[str, bool] = {}

    def load_model(self, target_model: object) -> None:
        """Load the draft's weights, if there is a draft model."""
        if self._vlm is not None:
            self._vlm.load()

    def bind(self, runner: Batch) -> None:
        """Tell the runner whose batch is drafted for."""
        self._runner = runner
        self._peers = Peers()
        if self._vlm is not None:
            self._vlm.bind(runner, self._peers)

    def cache_allocated(self) -> None:
        """vLLM's KV cache exists."""
        if self._vlm is not None:
            self._vlm.cache_allocated()

    def warm_up(self) -> None:
        """Compile the draft before the first request pays for it."""
        if self._vlm is not None:
            self._vlm.warm_up()

    def propose(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Never called by our runner, which drafts in `draft`; vLLM requires a proposer to have it."""
        raise RuntimeError(_STOCK_RUNNER)

    def verifies(self, request_id: str) -> bool:
        """Whether this request's tokens are chosen by our sampler, and so may have a tree (see `plain_reason`)."""
        plain = self._plain.get(request_id)
        if plain is None:
            params = self._runner.requests[request_id].sampling_params
            reason = "no sampling parameters" if params is None else plain_reason(params, self._logprobs_mode)
            plain = reason is not None
            self._plain[request_id] = plain
            if plain:
                logger.info_once("Requests that use %s are decoded without drafts by method 'specvlm'.", reason)
        return not plain

    def observe_schedule(self, scheduled: SchedulerOutput) -> None:
        """Before a step: forget finished requests and note which cache blocks changed hands."""
        anew = [request.req_id for request in scheduled.scheduled_new_reqs]
        for request_id in (*scheduled.finished_req_ids, *anew):
            self._plain.pop(request_id, None)
            if self._known.pop(request_id, None) is not None:
                self._watch(lambda drafter: drafter.finish(request_id))  # noqa: B023 - called at once
        vlm = self._vlm
        if vlm is not None:
            self._watch(lambda _: vlm.observe_schedule(scheduled))

    def observe_step(self, has_trees: bool) -> None:
        """Every step: keep the tally."""
        if has_trees:
            self.tally.tree_steps += 1
        else:
            self.tally.plain_steps += 1

    def observe_accepted(self, places: Sequence[TreePlace], accepted: Mapping[int, Accepted]) -> None:
        """After acceptance: keep the tally. Placeholders that vLLM pads a resumed request with were never drafted."""
        for place in places:
            if place.tree.tokens[0] < 0:
                continue
            self.tally.trees += 1
            self.tally.nodes += len(place.tree)
            self.tally.accepted += len(accepted[place.request].path)

    def draft(self, sampled: Sequence[bool], code: FlatCode) -> dict[str, list[int]]:
        """Encoded trees for the next step by request id; requests without one are decoded plainly.

        Args:
            sampled: per row of the batch, whether the request got a token in the step just done (a request in the
                middle of its prompt did not, and is not drafted for).
            code: how trees travel in vLLM's draft lists.
        """
        if self._drafter is None:
            return {}
        with self.tally.clock("draft"):
            try:
                return self._draft(sampled, code)
            except PeerFailedError:
                self._switch_off()
            except Exception:
                self._peers.tell_failure()
                self._switch_off()
        return {}

    def _draft(self, sampled: Sequence[bool], code: FlatCode) -> dict[str, list[int]]:
        assert self._drafter is not None
        if self._failure is not None:
            raise self._failure
        batch = self._batch(sampled)
        trees = self._grow(self._drafter, batch) if batch else {}
        codes = {request_id: code.encode(tree) for request_id, tree in trees.items()}
        self._peers.agree()
        return codes

    def _batch(self, sampled: Sequence[bool]) -> list[_Candidate]:
        """The requests that may have a tree, in batch order."""
        runner = self._runner
        candidates = []
        for row, (request_id, has_token) in enumerate(zip(runner.input_batch.req_ids, sampled, strict=True)):
            if not has_token or not self.verifies(request_id):
                continue
            state = runner.requests[request_id]
            if state.prompt_token_ids is None:
                continue
            # Verification yields one token more than it accepts: a last token needs no draft.
            most = state.sampling_params.max_tokens or runner.max_model_len
            depth = most - len(state.output_token_ids) - 1
            room = runner.max_model_len - int(runner.input_batch.num_tokens_no_spec[row]) - 1
            if depth > 0 and room > 0:
                candidates.append(_Candidate(request_id, min(self.shape.nodes, room), depth))
        return candidates

    def _grow(self, drafter: Drafter, batch: Sequence[_Candidate]) -> dict[str, TokenTree]:
        for candidate in batch:
            self._tell(drafter, candidate.request_id)
        drafter.open([candidate.request_id for candidate in batch])
        shape = self.shape
        if shape.paths is None:
            shape = replace(shape, depth=min(shape.depth, max(candidate.depth for candidate in batch)))
        grown = grow(drafter, shape, [candidate.nodes for candidate in batch], range(len(batch)))
        trees = {batch[i].request_id: tree.upto_depth(batch[i].depth) for i, tree in grown.items()}
        return {request_id: tree for request_id, tree in trees.items() if len(tree)}

    def _tell(self, drafter: Drafter, request_id: str) -> None:
        """Bring the drafter's idea of a request up to the confirmed tokens."""
        runner = self._runner
        row = runner.input_batch.req_id_to_index[request_id]
        confirmed = int(runner.input_batch.num_tokens_no_spec[row])
        known = self._known.get(request_id)
        tokens = runner.input_batch.token_ids_cpu[row, known or 0 : confirmed].tolist()
        if known is None:
            drafter.begin(request_id, tokens)
        else:
            drafter.advance(request_id, tokens)
        self._known[request_id] = confirmed

    def _watch(self, call: Callable[[Drafter], None]) -> None:
        """Run a call outside drafting; a failure waits for the next drafting, where all ranks can agree on it."""
        if self._drafter is None or self._failure is not None:
            return
        try:
            call(self._drafter)
        except Exception as failure:
            self._failure = failure

    def _switch_off(self) -> None:
        """Go on without the drafter, which failed with the exception being handled."""
        logger.exception("The drafter failed and is switched off; requests go on without speculation.")
        self.tally.drafter_failures += 1
        self._drafter = self._vlm = self._failure = None


def _placeholder_ids(vllm_config: VllmConfig) -> set[int]:
    """Token ids that stand for pictures and videos: a long run of them is no text to draw on."""
    config = vllm_config.model_config.hf_config
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {token for name in names if isinstance(token := getattr(config, name, None), int)}
