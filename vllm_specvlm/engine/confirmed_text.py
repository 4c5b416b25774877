"""What a drafter has been told of each request's text."""

from __future__ import annotations

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.engine.batch import Batch


class ConfirmedText:
    """Tells a drafter of each confirmed token once, and only of requests that somebody asks about."""

    def __init__(self, batch: Batch) -> None:
        """Nothing was told of the requests of `batch`."""
        self._batch = batch
        self._told: dict[str, int] = {}

    def has_told(self, request_id: str) -> bool:
        """Whether the drafter knows the request."""
        return request_id in self._told

    def tell(self, drafter: Drafter, request_id: str, upto: int | None = None) -> None:
        """Bring the drafter's idea of a request up to the confirmed tokens, or to the first so many of them."""
        text = self._batch.input_batch
        row = text.req_id_to_index[request_id]
        confirmed = int(text.num_tokens_no_spec[row]) if upto is None else upto
        told = self._told.get(request_id)
        if told == confirmed:
            return
        tokens = text.token_ids_cpu[row, told or 0 : confirmed].tolist()
        if told is None:
            drafter.begin(request_id, tokens)
        else:
            drafter.advance(request_id, tokens)
        self._told[request_id] = confirmed

    def forget(self, request_id: str) -> None:
        """The request is over, or another one of this name starts."""
        self._told.pop(request_id, None)
