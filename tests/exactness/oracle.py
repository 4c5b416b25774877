"""A drafter that knows the answer and surrounds it with wrong siblings: real trees, real acceptance, any weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from vllm_specvlm.draft.drafter import Opening
from vllm_specvlm.tree.grow import Frontier, LevelProposal

Answers = Mapping[tuple[int, ...], tuple[int, ...]]


class OracleDrafter:
    """Proposes `top_k` children: random tokens, and the right one most of the time, at a random rank.

    Args:
        answers: from prompt token ids to the answer's.
        vocabulary: random tokens are drawn from below this.
    """

    def __init__(self, answers: Answers, vocabulary: int, seed: int = 0) -> None:
        self._answers = answers
        self._vocabulary = vocabulary
        self._random = random.Random(seed)
        self._texts: dict[str, list[int]] = {}

    def begin(self, request_id: str, tokens: Sequence[int]) -> None:
        self._texts[request_id] = list(tokens)

    def advance(self, request_id: str, tokens: Sequence[int]) -> None:
        self._texts[request_id] += tokens

    def finish(self, request_id: str) -> None:
        self._texts.pop(request_id, None)

    def backlog(self, request_id: str) -> int:
        return 0

    def rehearse(self, rows: int, scored: int) -> None:
        pass

    def open(self, request_ids: Sequence[str]) -> Opening:
        self._remaining = [self._rest(self._texts[request_id]) for request_id in request_ids]
        self._right: list[bool] = []
        return Opening(len(request_ids))

    def _rest(self, text: list[int]) -> tuple[int, ...]:
        for prompt, answer in self._answers.items():
            done = len(text) - len(prompt)
            if done >= 0 and tuple(text[: len(prompt)]) == prompt and tuple(text[len(prompt) :]) == answer[:done]:
                return answer[done:]
        return ()

    def propose_level(self, frontier: Frontier, top_k: int) -> LevelProposal:
        rows = len(frontier.node)
        tokens = np.zeros((rows, top_k), dtype=np.int64)
        right = []
        for row in range(rows):
            depth = int(frontier.depth[row])
            rest = self._remaining[int(frontier.request[row])]
            parent_right = depth == 0 or self._right[int(frontier.parent_row[row])]
            on_path = parent_right and (
                depth == 0 or (depth <= len(rest) and int(frontier.token[row]) == rest[depth - 1])
            )
            right.append(on_path)
            children = self._random.sample(range(5, self._vocabulary), top_k)
            if on_path and depth < len(rest) and self._random.random() < 0.85:
                at = self._random.randrange(top_k)
                children = [child for child in children if child != rest[depth]][: top_k - 1]
                children.insert(at, rest[depth])
            tokens[row, : len(children)] = children
        self._right = right
        ranks = -0.7 - 0.05 * np.arange(top_k, dtype=np.float32)
        return LevelProposal(tokens, np.broadcast_to(ranks, (rows, top_k)).copy())
