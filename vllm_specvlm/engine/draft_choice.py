"""Which tokens a draft proposes: its likeliest, or for sampled requests those likeliest to win the target's draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vllm_specvlm.draft.calibration import Calibration
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.sampling import GREEDY_BELOW
from vllm_specvlm.engine.transfer import download_all, upload
from vllm_specvlm.tree.grow import LevelProposal
from vllm_specvlm.tree.noise import exponentials, position_keys

CANDIDATES = 64
"""So many of the draft's likeliest tokens enter its race. The target's has its whole vocabulary, but the noise of that
in every level would cost more than the rare winner from beyond is worth."""

Place = tuple[str, int]
"""A token to be chosen: request and position."""


@dataclass(frozen=True, slots=True)
class _Draw:
    """How the target will draw one token."""

    temperature: float
    top_k: int
    """0 or less: all."""
    top_p: float
    min_p: float
    seed: int
    position: int


@dataclass(frozen=True, slots=True)
class _Guess:
    """What was known of a token directly behind the confirmed text: the request's next one, whatever the tree."""

    place: Place
    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32]


class DraftChoice:
    """Chooses a draft's candidates.

    Greedy requests get the draft's likeliest tokens, with their log-probabilities under the draft.

    The target draws a sampled request's token by a race (`tree.race`) whose noise is known beforehand: position and
    seed make it. Its candidates are ranked by the draft's logits at the request's own temperature, top-k and top-p plus
    that noise: drafter-invariant coupling (Daliri, Musco, Suresh 2024), over lists of candidates as in Rowan et al.
    2025, "List-Level Distribution Coupling with Applications to Speculative Decoding and Lossy Compression". How much
    the noise counts depends on how near the draft's law is to the target's; `Calibration` learns it from the tokens
    drawn. What changes logits with the path (penalties and the like) is left out: that costs acceptance, never an
    answer.
    """

    def __init__(self, batch: Batch, vocabulary: torch.Tensor | None = None) -> None:
        """`batch` knows the requests, their text and their seeds.

        A draft that knows only some tokens gives its `vocabulary`: int64, the token of each of its logits.
        """
        self._batch = batch
        self._vocabulary = vocabulary
        self._calibration = Calibration()
        self._guesses: list[_Guess] = []
        self._noted: list[tuple[list[Place], tuple[torch.Tensor, ...]]] = []

    def learn(self) -> None:
        """Compare the last guesses with what the target has drawn since."""
        text = self._batch.input_batch
        for guess in self._guesses:
            request_id, position = guess.place
            row = text.req_id_to_index.get(request_id)
            if row is None or text.num_tokens_no_spec[row] <= position:
                continue
            drawn = np.flatnonzero(guess.ids == text.token_ids_cpu[row, position])
            if len(drawn) and np.isfinite(guess.logits[drawn[0]]):
                self._calibration.learn(guess.logits, guess.noise, int(drawn[0]))
        self._guesses, self._noted = [], []

    def candidates(self, logits: torch.Tensor, places: Sequence[Place], top_k: int) -> LevelProposal:
        """At most `top_k` next tokens of each row, the likeliest to be the target's first.

        Args:
            logits: float32 [rows, the draft's vocabulary].
            places: per row, what is to be guessed.
            top_k: most children of a row.

        Returns:
            [rows, at most top_k].
        """
        tokens, log_probs, *noted = download_all([*self.choose(logits, places, top_k), *self.noted])
        self.settle(noted)
        return LevelProposal(tokens, log_probs)

    def choose(self, logits: torch.Tensor, places: Sequence[Place], top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same on the device, and without waiting for it: int64 tokens and float32 log-probabilities.

        What is `noted` meanwhile has to be brought to `settle` some time before `learn`.
        """
        width = min(top_k, logits.shape[-1])
        draws = [self._draw(*place) for place in places]
        sampled = [row for row, draw in enumerate(draws) if draw is not None]
        if not sampled:
            return self._likeliest(logits, width)  # picking rows would copy their logits
        tokens = torch.empty((len(logits), width), dtype=torch.int64, device=logits.device)
        log_probs = logits.new_empty((len(logits), width))
        greedy = [row for row, draw in enumerate(draws) if draw is None]
        if greedy:
            at = _rows(greedy, logits.device)
            likely, values = self._likeliest(logits[at], width)
            tokens.index_copy_(0, at, likely)
            log_probs.index_copy_(0, at, values)
        at = _rows(sampled, logits.device)
        ids, values, noise = self._race(logits[at], [draw for draw in draws if draw is not None], width)
        belief = self._calibration.belief
        best = (belief.sharpness * (values + belief.trust * noise)).log_softmax(dim=-1).topk(width, dim=-1)
        tokens.index_copy_(0, at, ids.gather(1, best.indices))
        log_probs.index_copy_(0, at, best.values)
        self._note([places[row] for row in sampled], ids, values, noise)
        return tokens, log_probs

    @property
    def noted(self) -> list[torch.Tensor]:
        """On the device: what is needed to learn from the last guesses."""
        return [tensor for _, tensors in self._noted for tensor in tensors]

    def settle(self, noted: Sequence[np.ndarray]) -> None:
        """What was `noted`, on the CPU."""
        arrays = iter(noted)
        for places, tensors in self._noted:
            of_rows = zip(*(next(arrays) for _ in tensors), strict=True)
            self._guesses += [_Guess(place, *of_row) for place, of_row in zip(places, of_rows, strict=True)]
        self._noted = []

    def _draw(self, request_id: str, position: int) -> _Draw | None:
        """None for a greedy request."""
        params = self._batch.requests[request_id].sampling_params
        if params.temperature < GREEDY_BELOW:
            return None
        seed = self._batch.tree_sampler.seed(request_id)
        return _Draw(params.temperature, params.top_k, params.top_p, params.min_p, seed, position)

    def _likeliest(self, logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, width]: token ids (int64) and log-probabilities (float32), descending."""
        likely = logits.topk(width, dim=-1)
        return self._tokens(likely.indices), likely.values - logits.logsumexp(dim=-1, keepdim=True)

    def _race(
        self, logits: torch.Tensor, draws: Sequence[_Draw], width: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[rows, n]: token ids (int64), logits (float32, -inf where the law excludes one), T times noise (float32)."""
        device = logits.device
        temperature = _column([draw.temperature for draw in draws], device)
        values, indices = logits.topk(min(max(CANDIDATES, width), logits.shape[-1]), dim=-1)
        values = _within_top_k(_above_min_p(values, temperature, draws), draws)
        values = _within_top_p(logits, values, temperature, draws)
        seeds = upload(np.array([draw.seed for draw in draws], dtype=np.int64), device)
        positions = upload(np.array([draw.position for draw in draws], dtype=np.int64), device)
        ids = self._tokens(indices)
        return ids, values, -temperature * exponentials(position_keys(seeds, positions), ids).log()

    def _tokens(self, indices: torch.Tensor) -> torch.Tensor:
        """int64: the tokens of these logits."""
        return indices if self._vocabulary is None else self._vocabulary[indices]

    def _note(self, places: Sequence[Place], ids: torch.Tensor, values: torch.Tensor, noise: torch.Tensor) -> None:
        """Keep the guesses that the target's next token will judge."""
        text = self._batch.input_batch
        rows = [
            row
            for row, (request_id, position) in enumerate(places)
            if text.num_tokens_no_spec[text.req_id_to_index[request_id]] == position
        ]
        if rows:
            at = _rows(rows, ids.device)
            self._noted.append(([places[row] for row in rows], (ids[at], values[at], noise[at])))


def _rows(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [n]."""
    return upload(np.asarray(rows, dtype=np.int64), device)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """float32 [rows, 1]."""
    return upload(np.asarray(values, dtype=np.float32)[:, None], device)


def _above_min_p(values: torch.Tensor, temperature: torch.Tensor, draws: Sequence[_Draw]) -> torch.Tensor:
    """float32 [rows, n], descending: -inf where a token is less than `min_p` times as likely as the best one."""
    if all(draw.min_p <= 0.0 for draw in draws):
        return values
    least = temperature * _column([draw.min_p for draw in draws], values.device).log()
    return values.masked_fill(values - values[:, :1] < least, -torch.inf)


def _within_top_k(values: torch.Tensor, draws: Sequence[_Draw]) -> torch.Tensor:
    """float32 [rows, n], descending: -inf behind each row's top-k. Ties with the last one stay, as in vLLM."""
    count = values.shape[-1]
    last = np.array([draw.top_k if 0 < draw.top_k < count else count for draw in draws], dtype=np.int64)
    return values.masked_fill(values < values.gather(1, upload(last[:, None] - 1, values.device)), -torch.inf)


def _within_top_p(
    logits: torch.Tensor, values: torch.Tensor, temperature: torch.Tensor, draws: Sequence[_Draw]
) -> torch.Tensor:
    """float32 [rows, n], descending: -inf where the likelier tokens alone hold a row's top-p.

    As in vLLM, of the law that `min_p` and top-k left: the row's best n values hold all of it if its top-k is not above
    n, or one of them was too unlikely already.
    """
    if all(draw.top_p >= 1.0 for draw in draws):
        return values
    scaled = values / temperature
    whole = upload(np.array([[not 0 < draw.top_k <= values.shape[-1]] for draw in draws]), values.device)
    whole &= values[:, -1:].isfinite()
    mass = torch.where(whole, (logits / temperature).logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True))
    probs = (scaled - mass).exp()
    # A row without top-p keeps all its values, whatever their sum rounds to.
    top_p = _column([draw.top_p if draw.top_p < 1.0 else np.inf for draw in draws], values.device)
    return values.masked_fill(probs.cumsum(-1) - probs >= top_p, -torch.inf)
