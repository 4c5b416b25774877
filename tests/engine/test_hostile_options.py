"""Options and request arguments of every wrong kind: a sentence, never another exception."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.request_wish import RequestWish
from vllm_specvlm.tree.token_tree import MAX_NODES

NAMES = [field.name for field in dataclasses.fields(SpecVLMOptions)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
RIGHT = {bool: (True, False), int: (1, 3, 8, 127), str: ("chain", "dynamic", "d"), type(None): (None,)}
"""Values that are right for some options, so that wrong ones meet each other too."""
PLAUSIBLE = st.sampled_from([value for values in RIGHT.values() for value in values])


def one_sentence(error: ValueError) -> None:
    said = str(error)
    assert said and "\n" not in said and said.endswith((".", "`"))


@settings(deadline=None, max_examples=600)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON | PLAUSIBLE, max_size=4))
def test_options(given: dict[str, Any]) -> None:
    try:
        options = SpecVLMOptions.parse(given)
    except ValueError as error:
        one_sentence(error)
    else:
        shape = options.shape()
        assert 1 <= shape.nodes <= MAX_NODES and shape.depth <= MAX_NODES and shape.top_k <= MAX_NODES
        assert SpecVLMOptions.parse(json.loads(json.dumps(options.as_dict()))) == options


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.integers(-2, 200) | st.integers(), max_size=4), max_size=140))
def test_paths(paths: list[list[int]]) -> None:
    try:
        shape = SpecVLMOptions.parse({"paths": paths}).shape()
    except ValueError as error:
        one_sentence(error)
    else:
        assert shape.nodes == len(paths) and shape.top_k <= MAX_NODES


@pytest.mark.parametrize("rank", [127, 10**9, 10**30])
def test_a_rank_is_no_way_to_ask_for_memory(rank: int) -> None:
    with pytest.raises(ValueError, match="has a rank above 126"):
        SpecVLMOptions.parse({"paths": [[0], [rank]]})


class _Odd:
    """Equal to nothing, and says so loudly."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("odd")

    __hash__ = object.__hash__


WISHES = st.sampled_from(["specvlm", "specvlm_nodes", "specvlm_depth"])
ODD = st.sampled_from(["9" * 5000, "٣", "on", "off", "8", 1e400, -0.0, float("nan"), 10**400, b"on", _Odd(), [_Odd()]])


@settings(deadline=None, max_examples=600)
@given(st.dictionaries(WISHES | st.text(max_size=8) | st.integers() | st.none(), JSON | ODD, max_size=4) | JSON | ODD)
def test_request_arguments(extra_args: Any) -> None:
    try:
        wish = RequestWish.parse(extra_args)
    except ValueError as error:
        one_sentence(error)
    else:
        assert 0 <= wish.nodes <= MAX_NODES and 0 <= wish.depth <= MAX_NODES
