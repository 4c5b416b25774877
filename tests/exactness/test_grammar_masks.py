"""The masks that a tree's rows get in the scheduler's process, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tests.exactness.engines import answers, engine, target_of, tokens
from tests.exactness.grammars import KINDS, grammar
from tests.exactness.test_grammars import BACKENDS, under
from tests.tiny.prompts import prompts
from vllm_specvlm.engine.dictated_text import DictatedText
from vllm_specvlm.engine.tree_grammars import TreeGrammars
from vllm_specvlm.tree.flat_code import FlatCode
from vllm_specvlm.tree.token_tree import TokenTree


def request_for(manager: TreeGrammars, kind: str, backend: str, prompt: Sequence[int] = (1, 60, 61)) -> Request:
    """A request with its grammar compiled, as the engine core makes it."""
    params, config = SamplingParams(structured_outputs=grammar(kind, backend)), manager.vllm_config
    params.verify(config.model_config, config.speculative_config, config.structured_outputs_config, manager.tokenizer)
    params.update_from_generation_config({}, 2)
    made = Request("asked", list(prompt), params, None)
    manager.grammar_init(made)
    wait([made.structured_output_request._grammar])
    return made


def manager_of(backend: str) -> TreeGrammars:
    llm = engine(target_of("llava"), {"num_speculative_tokens": 12}, **under(backend))
    manager: TreeGrammars = llm.llm_engine.engine_core.engine_core.structured_output_manager
    return manager


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_row_has_the_mask_of_its_path(backend: str, kind: str) -> None:
    """Random trees, half of whose nodes the grammar allows, against a grammar that was fed with the path alone."""
    manager, draw = manager_of(backend), np.random.default_rng(7)
    code = FlatCode(manager.vllm_config.model_config.get_vocab_size())
    walked, beside = request_for(manager, kind, backend), request_for(manager, kind, backend)
    row = manager.backend.allocate_token_bitmask(1)

    def fed(path: Sequence[int]) -> tuple[bool, list[int]]:
        """Whether a new grammar allows the path, and the mask behind it."""
        fresh = request_for(manager, kind, backend).structured_output_request.grammar
        for token in path:
            if not fresh.is_terminated() and not (fresh.validate_tokens([token]) and fresh.accept_tokens("", [token])):
                return False, []
        row.fill_(-1)
        if not fresh.is_terminated():
            fresh.fill_bitmask(row, 0)
        return True, row[0].tolist()

    seen = 0
    for _ in range(12):
        tokens_, parents = [], []
        for node in range(12):
            parent = int(draw.integers(-1, node)) if node else -1
            path: list[int] = []
            at = parent
            while at >= 0:
                path.insert(0, tokens_[at])
                at = parents[at]
            valid, mask = fed(path)
            allowed = [t for t in range(512) if valid and mask[t // 32] >> (t % 32) & 1]
            tokens_.append(int(draw.choice(allowed)) if allowed and draw.random() < 0.6 else int(draw.integers(3, 512)))
            parents.append(parent)
        tree = TokenTree(tuple(tokens_), tuple(parents))
        paths = [[]]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            paths.append([*paths[parent + 1], token])
        wanted = [fed(path) for path in paths]
        kept = code.decode(manager.validate_tokens(walked, code.encode(tree)))
        left = tree.restricted([i for i in range(len(tree)) if wanted[i + 1][0]])
        assert kept.prefix(len(left)) == left and len(kept) <= len(tree), "what is dictated comes behind it"
        ids = {"a": walked, "b": beside}
        masks = manager.grammar_bitmask(ids, ["b", "a"], {"a": code.encode(tree)})
        assert masks is not None and len(masks) == len(tree) + 2
        assert masks[0].tolist() == wanted[0][1]
        for found, (valid, mask) in zip(masks[1:].tolist(), wanted, strict=True):
            assert found == (mask if valid else [-1] * len(found))
            seen += valid
    assert seen > 40


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_without_trees(backend: str) -> None:
    """Plain lists of drafts, also with placeholders at their end, get what vLLM itself would give them."""
    manager = manager_of(backend)
    answer = tokens(
        answers(
            engine(target_of("llava"), **under(backend)),
            prompts("llava")[:1],
            SamplingParams(temperature=0.0, max_tokens=8, structured_outputs=grammar("regex", backend)),
        )
    )[0]
    asked = request_for(manager, "regex", backend)
    for draft in ([], [*answer], [*answer, -1, -1], [-1, -1, -1], [*answer[:3], 511, *answer[3:]]):
        stock = StructuredOutputManager.validate_tokens(manager, asked, list(draft))
        assert manager.validate_tokens(asked, list(draft)) == stock
    for draft in ([], [*answer], [*answer, -1, -1], [-1, -1, -1]):
        scheduled = {"asked": draft}
        stock = StructuredOutputManager.grammar_bitmask(manager, {"asked": asked}, ["asked"], scheduled).copy()
        assert np.array_equal(manager.grammar_bitmask({"asked": asked}, ["asked"], scheduled), stock)


def test_blocks_of_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.33 gives every request a block of as many rows as a request can have; so do we, if vLLM does."""
    manager = manager_of("xgrammar")
    asked, beside = (request_for(manager, "open regex", "xgrammar") for _ in range(2))
    stock = StructuredOutputManager.grammar_bitmask
    scheduled = {"b": [60, 61]}
    compact = manager.grammar_bitmask({"a": asked, "b": beside}, ["a", "b"], scheduled)
    assert compact is not None and len(compact) == 4

    def in_blocks(self: StructuredOutputManager, requests: Any, ids: list[str], drafts: Any) -> np.ndarray:
        masks = stock(self, requests, ids, drafts)
        blocks = np.zeros((len(ids), 13, masks.shape[1]), dtype=np.int32)
        blocks[:, 0] = masks
        return blocks.reshape(-1, masks.shape[1])

    monkeypatch.setattr(StructuredOutputManager, "grammar_bitmask", in_blocks)
    masks = manager.grammar_bitmask({"a": asked, "b": beside}, ["a", "b"], scheduled)
    assert masks is not None and len(masks) == 26
    assert np.array_equal(masks[[0, 13, 14, 15]], compact)
    assert (masks[1:13] == -1).all() and (masks[16:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dictated(backend: str, kind: str) -> None:
    """Along random answers: every other token allowed is a beginning of the dictated one, where one is; none is missed.

    And the grammar stays where it was.
    """
    manager, draw = manager_of(backend), np.random.default_rng(3)
    request_for(manager, kind, backend)  # the first one makes the backend
    dictated = DictatedText(manager.tokenizer, manager.backend.allocate_token_bitmask(1))
    row = manager.backend.allocate_token_bitmask(1)

    def allowed(grammar: Any) -> list[int]:
        row.fill_(-1)
        grammar.fill_bitmask(row, 0)
        return [t for t in range(512) if row[0].tolist()[t // 32] >> (t % 32) & 1]

    found = 0
    for _ in range(4):
        grammar = request_for(manager, kind, backend).structured_output_request.grammar
        for _ in range(25):
            if grammar.is_terminated():
                break
            before = allowed(grammar)
            chain = dictated.after(grammar, 6)
            assert allowed(grammar) == before and not grammar.is_terminated()
            known, fed = before, 0
            for token in chain:
                texts = {manager.tokenizer.convert_ids_to_tokens(t) for t in known}
                assert token in known
                assert all(manager.tokenizer.convert_ids_to_tokens(token).startswith(text) for text in texts)
                assert grammar.accept_tokens("", [token])
                fed += 1
                known = [] if grammar.is_terminated() else allowed(grammar)
            assert len(chain) == 6 or len(known) != 1, "it stopped before there was a choice"
            found += len(chain)
            grammar.rollback(fed)
            assert allowed(grammar) == before
            assert grammar.accept_tokens("", [int(draw.choice(before))])
    assert found or kind in ("grammar", "json object", "open regex")


@pytest.mark.parametrize("backend", BACKENDS)
def test_room_for_what_is_dictated(backend: str) -> None:
    """No more nodes than codes came, and no longer paths than the tree's or the placeholders allow."""
    manager = manager_of(backend)
    code = FlatCode(manager.vllm_config.model_config.get_vocab_size())
    asked = request_for(manager, "json", backend)
    before = manager.dictated
    whole = code.decode(manager.validate_tokens(asked, [-1] * 12))
    assert whole.is_chain and 2 < len(whole) <= 12 and manager.dictated == before + len(whole)
    for room in range(1, 12):
        assert code.decode(manager.validate_tokens(asked, [-1] * room)) == whole.prefix(room)
    wrong = TokenTree((500, 501, 502, 503), (-1, 0, 0, -1))
    assert code.decode(manager.validate_tokens(asked, code.encode(wrong))) == whole.prefix(2), (
        "in place of what was cut"
    )
    assert code.decode(manager.validate_tokens(asked, [*code.encode(wrong), -1, -1, -1])) == whole.prefix(3)
    right = whole.prefix(2)
    assert code.decode(manager.validate_tokens(asked, [*code.encode(right), *[-1] * 10])) == whole.prefix(10)
    free = request_for(manager, "open regex", backend)
    assert manager.validate_tokens(free, [-1] * 12) == []


def test_how_the_target_spells_what_is_dictated_is_learned() -> None:
    """The longest token at first, then the one that came in its place; the last time counts.

    Under xgrammar, which allows every spelling.
    """
    backend = "xgrammar"
    manager = manager_of(backend)
    grammar = request_for(manager, "choice", backend).structured_output_request.grammar
    dictated = DictatedText(manager.tokenizer, manager.backend.allocate_token_bitmask(1))
    for token in manager.tokenizer.encode("the", add_special_tokens=False):
        assert grammar.accept_tokens("", [token])
    rest, text = dictated.after(grammar, 30), " tale of the red tree"
    assert manager.tokenizer.decode(rest, skip_special_tokens=True) == text
    (blank,) = manager.tokenizer.encode(" ", add_special_tokens=False)
    letters = [blank, *(manager.tokenizer.convert_tokens_to_ids(letter) for letter in "tale")]
    assert rest[: len(letters)] != letters, "in longer tokens"
    for token in letters:
        dictated.learn(grammar, token)
        assert dictated.after(grammar, 1) == [token]
        assert grammar.accept_tokens("", [token])
    grammar.rollback(len(letters))
    again = dictated.after(grammar, 30)
    assert again[: len(letters)] == letters and manager.tokenizer.decode(again, skip_special_tokens=True) == text
    dictated.learn(grammar, rest[0])
    assert dictated.after(grammar, 30)[0] == rest[0], "the last time counts"
