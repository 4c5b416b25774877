"""Structured output on trees: in the scheduler's process, every node of a tree gets the grammar's mask along its path.

vLLM asks its `StructuredOutputManager` twice in a step: which drafts the grammar allows, and which tokens may follow
at each row. Its own answers are for lists of tokens; here the lists are flat codes of trees (`tree.flat_code`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.v1.structured_output import StructuredOutputManager

from vllm_specvlm.engine import exporter
from vllm_specvlm.engine.dictated_text import DictatedText
from vllm_specvlm.engine.options import METHOD
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.token_tree import TokenTree

if TYPE_CHECKING:
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

    forbidden: int
    """Drafted nodes that were taken out of trees, and so never verified."""
    dictated: int
    """Nodes that were put into trees because the grammar leaves no choice."""
    _dictated_text: DictatedText | None

    def adopt(self) -> None:
        """Finish the construction of a stock manager whose class has just become this one."""
        self._code = FlatCode(self.vllm_config.model_config.get_vocab_size())
        self._metrics = exporter.metrics()
        self.forbidden = self.dictated = 0
        self._dictated_text = None

    def validate_tokens(self, request: Request, spec_tokens: list[int]) -> list[int]:
        """The code of what the grammar leaves of a drafted tree, and of what it dictates.

        A node it rejects goes with all that follows it. Where it leaves no choice, and nobody drafted what has to come,
        that follows as a chain. The target decides about both as about any draft.

        Args:
            request: with its grammar where its text ends.
            spec_tokens: a tree's code, and behind it placeholders (-1): there may be as many nodes as there are codes,
                and no path longer than the tree's longest or the number of placeholders.
        """
        if not request.use_structured_output:
            return spec_tokens
        given = self._code.decode(spec_tokens)
        tree = given.prefix(next((node for node, token in enumerate(given.tokens) if token < 0), len(given)))
        deepest = max(len(given) - len(tree), *tree.depths, 0)
        drafted: list[list[int]] = [[] for _ in range(len(tree) + 1)]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            drafted[parent + 1].append(token)
        kept: list[int] = []
        dictated: dict[int, list[int]] = {}
        for row, text in self._visit(request, tree):
            if row:
                kept.append(row - 1)
                validate = text.structured_output_request.grammar.validate_tokens
                if any(validate([token]) for token in drafted[row]):
                    continue  # to ask everywhere would take as long as the masks do
            chain = self._dictated(text, deepest - (tree.depths[row - 1] if row else 0))
            if chain and chain[0] not in drafted[row]:
                dictated[row] = chain
        kept.sort()
        left = tree.restricted(kept)
        tokens, parents = list(left.tokens), list(left.parents)
        for row, chain in sorted(dictated.items()):  # likeliest first, as the drafter's nodes are
            parent = kept.index(row - 1) if row else -1
            for token in chain[: len(given) - len(tokens)]:
                tokens.append(token)
                parents.append(parent)
                parent = len(tokens) - 1
        self.forbidden += len(tree) - len(kept)
        self.dictated += len(tokens) - len(kept)
        self._metrics.forbidden(len(tree) - len(kept))
        return self._code.encode(TokenTree(tuple(tokens), tuple(parents)))

    def _dictated(self, text: _Text, most: int) -> list[int]:
        """At most so many tokens that have to follow a text, with the grammar in its state there."""
        grammar = text.structured_output_request.grammar
        if most < 1 or grammar.is_terminated() or self._get_constraint_bounds(text, ()).constraint_start:
            return []
        if self._dictated_text is None:
            assert self.backend is not None
            self._dictated_text = DictatedText(self.tokenizer, self.backend.allocate_token_bitmask(1))
        return self._dictated_text.after(grammar, most)

    def grammar_bitmask(
        self,
        requests: dict[str, Request],
        structured_output_request_ids: list[str],
        scheduled_spec_decode_tokens: dict[str, list[int]],
    ) -> npt.NDArray[np.int32] | None:
        """The masks of all requests with grammars, each one's root row, then its nodes'.

        A row's mask is what vLLM gives to a request that has come as far without drafts. Rows behind a placeholder (-1)
        or a rejected node are left free: nothing is ever accepted there.

        Returns:
            int32 [rows, vocabulary / 32], as `apply_grammar_bitmask` takes them: one request's rows behind the other's
            in vLLM 0.32, in blocks of equal size since 0.33.
        """
        ids = structured_output_request_ids
        roots = super().grammar_bitmask(requests, ids, {})
        trees = [self._code.decode(scheduled_spec_decode_tokens.get(request_id, ())) for request_id in ids]
        if roots is None or not any(trees):
            return roots
        block = len(roots) // len(ids)
        counts = [len(tree) + 1 if block == 1 else block for tree in trees]
        masks = np.full((sum(counts), roots.shape[1]), -1, dtype=np.int32)
        for request_id, tree, start in zip(ids, trees, np.cumsum([0, *counts]), strict=False):
            for row, text in self._visit(requests[request_id], tree):
                alone = super().grammar_bitmask({request_id: text}, [request_id], {})
                assert alone is not None
                masks[start + row] = alone[0]
        return masks

    def accept_tokens(self, request: Request, new_token_ids: list[int]) -> bool:
        """Advance the grammar by an accepted path, token by token; False if it rejects one.

        Where reasoning ends, and so where the grammar begins, some parsers see otherwise in several tokens at once.
        """
        if len(new_token_ids) < 2 or not request.use_structured_output:
            return super().accept_tokens(request, new_token_ids)
        text = list(request.all_token_ids)
        for left in reversed(range(len(new_token_ids))):
            upto = len(text) - left
            if not super().accept_tokens(_Text.of(request, text[:upto]), [text[upto - 1]]):
                return False
        return True

    def _visit(self, request: Request, tree: TokenTree) -> Iterator[tuple[int, _Text]]:
        """Every row that can be reached, depth first, with the grammar in its state as long as the row is the last one.

        Yields:
            0 for the root or node + 1, and the request as it would stand there.
        """
        children: list[list[int]] = [[] for _ in range(len(tree) + 1)]
        for node, parent in enumerate(tree.parents):
            children[parent + 1].append(node)
        # A reasoning model's thoughts are free; only what ends them is looked for in the text.
        constrained = self._get_constraint_bounds(request, ()).constraint_start == 0
        text = _Text.of(request, [] if constrained else list(request.all_token_ids))
        yield from self._descend(text, constrained, tree, children, 0)

    def _descend(
        self, text: _Text, constrained: bool, tree: TokenTree, children: Sequence[Sequence[int]], row: int
    ) -> Iterator[tuple[int, _Text]]:
        """`_visit` from a row on, where the text is `text`, and the next token `constrained` or not."""
        yield row, text
        grammar = text.structured_output_request.grammar
        for node in children[row]:
            token = tree.tokens[node]
            if token < 0:
                continue
            longer, fed, after = text, constrained and not grammar.is_terminated(), True
            if not constrained:
                longer = text.followed_by(token)
                bounds = self._get_constraint_bounds(longer, [token], spec_tokens_committed=True)
                fed, after = bounds.grammar_start == 0, bounds.constraint_start <= 1
            if fed and not (grammar.validate_tokens([token]) and grammar.accept_tokens(text.request_id, [token])):
                continue
            ended = longer.without_thoughts() if after and not constrained else longer
            yield from self._descend(ended, after, tree, children, node + 1)
            if fed:
                grammar.rollback(1)


@dataclass(frozen=True, slots=True)
class _Text:
    """A request as vLLM's manager sees it when its text ends after these tokens."""

    request_id: str
    prompt_token_ids: list[int] | None
    structured_output_request: Any
    all_token_ids: list[int]

    use_structured_output = True

    @classmethod
    def of(cls, request: Request, all_token_ids: list[int]) -> _Text:
        return cls(request.request_id, request.prompt_token_ids, request.structured_output_request, all_token_ids)

    def followed_by(self, token: int) -> _Text:
        return replace(self, all_token_ids=[*self.all_token_ids, token])

    def without_thoughts(self) -> _Text:
        """The same where the grammar has begun; of the request itself that is not known yet."""
        begun = replace(self.structured_output_request, reasoning_ended=True)
        return replace(self, structured_output_request=begun)
