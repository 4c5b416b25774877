"""Which requests may have a tree, and within which bounds."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.sampling_params import SamplingParams

from vllm_specvlm.engine import tree_grammars
from vllm_specvlm.engine.admission import custom_processor
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.planned_growth import Growable
from vllm_specvlm.engine.request_wish import RequestWish
from vllm_specvlm.engine.sampling import GREEDY_BELOW, plain_reason
from vllm_specvlm.tree.tree_shape import TreeShape

logger = logger_for(__name__)


class Eligibility:
    """Looks at each request's sampling parameters once."""

    def __init__(self, batch: Batch, shape: TreeShape, logprobs_mode: str) -> None:
        """`batch` knows the requests, `shape` bounds their trees, `logprobs_mode` is vLLM's `--logprobs-mode`."""
        self._batch = batch
        self._shape = shape
        self._logprobs_mode = logprobs_mode
        self._plain: dict[str, bool] = {}
        self._wishes: dict[str, RequestWish] = {}
        self._stops: dict[str, frozenset[int]] = {}

    def verifies(self, request_id: str) -> bool:
        """Whether this request's tokens are chosen by our sampler, and so may have a tree (see `plain_reason`)."""
        plain = self._plain.get(request_id)
        if plain is None:
            params = self._batch.requests[request_id].sampling_params
            reason = "no sampling parameters" if params is None else self._reason(request_id, params)
            plain = reason is not None
            self._plain[request_id] = plain
            if plain:
                logger.info_once("Requests that use %s are decoded without drafts by method 'specvlm'.", reason)
        return not plain

    def ended(self, confirmed: Sequence[int]) -> dict[int, int]:
        """Of rows whose request the scheduler is about to end, how many tokens it has then, its prompt's included.

        `confirmed` says per row how many tokens it got in the step just done. What is known here is how long an answer
        may get, and which tokens stop it. Those behind one, on an accepted path, belong to nobody.
        """
        text, ends = self._batch.input_batch, {}
        for row, (request_id, count) in enumerate(zip(text.req_ids, confirmed, strict=True)):
            state = self._batch.requests[request_id]
            params = state.sampling_params
            if params is None or not count:
                continue
            stops = self._ends(request_id, params)
            tokens = int(text.num_tokens_no_spec[row])
            if len(state.output_token_ids) >= self._most(params) or tokens >= self._batch.max_model_len:
                ends[row] = tokens
            first = tokens - count
            for at, token in enumerate(text.token_ids_cpu[row, first : first + count].tolist()):
                if token in stops:
                    ends[row] = first + at + 1
                    break
        return ends

    def growable(self, rows: Sequence[int]) -> list[Growable]:
        """The requests of these rows that may have a tree, in their order."""
        batch = self._batch
        found = []
        for row in rows:
            request_id = batch.input_batch.req_ids[row]
            if not self.verifies(request_id):
                continue
            state = batch.requests[request_id]
            if state.prompt_token_ids is None:
                continue
            wish = self._wish(request_id)
            # Verification yields one token more than it accepts: a last token needs no draft.
            most = self._most(state.sampling_params)
            depth = min(most - len(state.output_token_ids) - 1, wish.depth)
            room = batch.max_model_len - int(batch.input_batch.num_tokens_no_spec[row]) - 1
            nodes = min(self._shape.nodes, room, wish.nodes)
            if depth > 0 and nodes > 0:
                sampling = state.sampling_params.temperature >= GREEDY_BELOW
                left = most - len(state.output_token_ids)
                bounded = wish.nodes < self._shape.nodes or wish.depth < self._shape.depth
                grammar = state.sampling_params.structured_outputs is not None
                picture = bool(state.mm_features)
                ends = self._ends(request_id, state.sampling_params)
                found.append(Growable(request_id, nodes, depth, sampling, picture, left, bounded, grammar, ends))
        return found

    def forget(self, request_id: str) -> None:
        """The request is over, or another one of this name starts."""
        self._plain.pop(request_id, None)
        self._wishes.pop(request_id, None)
        self._stops.pop(request_id, None)

    def _reason(self, request_id: str, params: SamplingParams) -> str | None:
        """Why this request, of the present batch, is decoded plainly; None if it is not."""
        batch = self._batch.input_batch
        custom = custom_processor(batch.logitsprocs, batch.req_id_to_index[request_id])
        if custom is not None:
            return f"the logits processor {custom}"
        return plain_reason(params, self._logprobs_mode, grammars=tree_grammars.installed())

    def _wish(self, request_id: str) -> RequestWish:
        """What the request asks of us; one that cannot be understood asks nothing."""
        wish = self._wishes.get(request_id)
        if wish is None:
            try:
                wish = RequestWish.parse(self._batch.requests[request_id].sampling_params.extra_args)
            except ValueError as error:
                logger.debug("Request %s: %s", request_id, error)
                logger.warning_once("Requests come with 'specvlm' arguments that mean nothing; they are ignored.")
                wish = RequestWish()
            self._wishes[request_id] = wish
        return wish

    def _most(self, params: SamplingParams) -> int:
        """Tokens that an answer may have."""
        return params.max_tokens or self._batch.max_model_len

    def _ends(self, request_id: str, params: SamplingParams) -> frozenset[int]:
        """The tokens that end its answer."""
        stops = self._stops.get(request_id)
        if stops is None:
            eos = () if params.eos_token_id is None else (params.eos_token_id,)
            stops = self._stops[request_id] = frozenset((*(params.stop_token_ids or ()), *eos))
        return stops
