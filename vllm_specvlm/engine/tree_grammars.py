"""Structured output on trees: in the scheduler's process, every node of a tree gets the grammar's mask along its path.

vLLM asks its `StructuredOutputManager` twice in a step: which drafts the grammar allows, and which tokens may follow
at each row. Its own answers are for lists of tokens; here the lists are flat codes of trees (`tree.flat_code`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.structured_output import StructuredOutputManager

from vllm_specvlm.engine.options import METHOD
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.token_tree import TokenTree

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from vllm.config import VllmConfig
    from vllm.v1.request import Request


def install() -> None:
    """Give engines of method `specvlm` a manager that understands trees; those of others keep vLLM's own.

    The engine core builds its manager itself and lets nobody choose the class, so the finished object's is exchanged.
    """
    stock = StructuredOutputManager.__init__
    if getattr(stock, "_specvlm", False):
        return

    @functools.wraps(stock)
    def construct(self: StructuredOutputManager, vllm_config: VllmConfig) -> None:
        stock(self, vllm_config)
        given = vllm_config.additional_config
        if isinstance(given, dict) and METHOD in given:
            self.__class__ = TreeGrammars
            self.adopt()

    construct._specvlm = True  # type: ignore[attr-defined]
    StructuredOutputManager.__init__ = construct


def installed() -> bool:
    """Whether plugins were loaded in this process, and so in the scheduler's, which has the same environment.

    A program may call `plugin.register` by hand where no entry point is installed: worker processes then know nothing
    of it, and the scheduler's may know as little.
    """
    return bool(getattr(StructuredOutputManager.__init__, "_specvlm", False))


class TreeGrammars(StructuredOutputManager):
    """vLLM's manager, which takes a request's grammar through the request's tree and back.

    A node counts as plain decoding would have it: its token arrives alone, after those of its path.
    """

    _grammar_bitmask: Any  # vLLM's: the masks of a step, int32 [rows, vocabulary / 32], None before the first one

    def adopt(self) -> None:
        """Finish the construction of a stock manager whose class has just become this one."""
        self._code = FlatCode(self.vllm_config.model_config.get_vocab_size())

    def validate_tokens(self, request: Request, spec_tokens: list[int]) -> list[int]:
        """The code of what the grammar leaves of a drafted tree: a node it rejects goes with all that follows it."""
        if not request.use_structured_output:
            return spec_tokens
        tree = self._code.decode(spec_tokens)
        kept = [row - 1 for row, _ in self._visit(request, tree) if row]
        return self._code.encode(tree.restricted(sorted(kept)))

    def grammar_bitmask(
        self,
        requests: dict[str, Request],
        structured_output_request_ids: list[str],
        scheduled_spec_decode_tokens: dict[str, list[int]],
    ) -> npt.NDArray[np.int32] | None:
        """The masks of all requests with grammars, int32 [rows, vocabulary / 32]: each one's root row, then its nodes'.

        Rows behind a placeholder (-1) or a rejected node are left free: nothing is ever accepted there.
        """
        if not any(scheduled_spec_decode_tokens.get(request_id) for request_id in structured_output_request_ids):
            return super().grammar_bitmask(requests, structured_output_request_ids, {})
        if self._grammar_bitmask is None:
            most = self.vllm_config.scheduler_config.max_num_seqs * (1 + self.vllm_config.num_speculative_tokens)
            self._grammar_bitmask = self.backend.allocate_token_bitmask(most)
        first = 0
        for request_id in structured_output_request_ids:
            request = requests[request_id]
            tree = self._code.decode(scheduled_spec_decode_tokens.get(request_id, ()))
            rows = len(tree) + 1
            self._grammar_bitmask[first : first + rows] = self._full_mask
            for row, constrained in self._visit(request, tree):
                self._fill_bitmasks(((_grammar(request), first + row, constrained),))
            first += rows
        return self._grammar_bitmask[:first].numpy()

    def accept_tokens(self, request: Request, new_token_ids: list[int]) -> bool:
        """Advance the grammar by an accepted path, token by token; False if it rejects one.

        Where reasoning ends, and so where the grammar begins, some parsers see otherwise in several tokens at once.
        """
        if len(new_token_ids) < 2 or not request.use_structured_output:
            return super().accept_tokens(request, new_token_ids)
        text = list(request.all_token_ids)
        for left in reversed(range(len(new_token_ids))):
            upto = len(text) - left
            if not super().accept_tokens(_Text(request, text[:upto]), [text[upto - 1]]):
                return False
        return True

    def _visit(self, request: Request, tree: TokenTree) -> Iterator[tuple[int, bool]]:
        """Every row that can be reached, depth first, with the grammar in its state as long as the row is the last one.

        Yields:
            0 for the root or node + 1, and whether the grammar constrains what follows there (a reasoning model's
            thoughts are free).
        """
        children: list[list[int]] = [[] for _ in range(len(tree) + 1)]
        for node, parent in enumerate(tree.parents):
            children[parent + 1].append(node)
        constrained = self._get_constraint_bounds(request, ()).constraint_start == 0
        text = [] if constrained else list(request.all_token_ids)  # only what ends a thought is looked for in it
        yield from self._descend(request, tree, children, 0, text, constrained)

    def _descend(
        self,
        request: Request,
        tree: TokenTree,
        children: Sequence[Sequence[int]],
        row: int,
        text: list[int],
        constrained: bool,
    ) -> Iterator[tuple[int, bool]]:
        """`_visit` from a row on; `text` is everything up to and with the row's token, while thoughts are free."""
        yield row, constrained
        grammar = _grammar(request)
        for node in children[row]:
            token = tree.tokens[node]
            if token < 0:
                continue
            text.append(token)
            fed, after = self._effect(request, text, constrained)
            if not fed or (grammar.validate_tokens([token]) and grammar.accept_tokens(request.request_id, [token])):
                yield from self._descend(request, tree, children, node + 1, text, after)
                if fed:
                    grammar.rollback(1)
            text.pop()

    def _effect(self, request: Request, text: list[int], constrained: bool) -> tuple[bool, bool]:
        """Whether the grammar is fed with the last token of `text`, and whether it constrains what follows."""
        if constrained:
            return not _grammar(request).is_terminated(), True
        bounds = self._get_constraint_bounds(_Text(request, text), text[-1:], spec_tokens_committed=True)
        return bounds.grammar_start == 0, bounds.constraint_start <= 1


def _grammar(request: Request) -> Any:
    """The request's compiled grammar (`StructuredOutputGrammar`)."""
    structured = request.structured_output_request
    assert structured is not None
    return structured.grammar


@dataclass(frozen=True, slots=True)
class _Text:
    """A request as vLLM's manager sees it when its text ends after these tokens."""

    request: Request
    all_token_ids: list[int]

    use_structured_output = True

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def prompt_token_ids(self) -> list[int] | None:
        return self.request.prompt_token_ids

    @property
    def structured_output_request(self) -> Any:
        return self.request.structured_output_request
