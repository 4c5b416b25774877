from __future__ import annotations

from typing import Any

import pytest

from vllm_specvlm.engine.options import SpecVLMOptions


def test_defaults_alone_are_a_lookup_drafter() -> None:
    options = SpecVLMOptions.parse({"method": "specvlm"})
    assert options.model is None
    shape = options.shape()
    assert (shape.nodes, shape.depth) == (8, 8)


def test_a_draft_model_grows_shallower() -> None:
    shape = SpecVLMOptions.parse({"model": "x", "num_speculative_tokens": 16}).shape()
    assert (shape.nodes, shape.depth, shape.width, shape.top_k) == (16, 6, 4, 4)


def test_dashes_and_paths() -> None:
    options = SpecVLMOptions.parse({"num-speculative-tokens": 3, "paths": [[0], [1], [0, 0]]})
    assert options.shape().paths == ((0,), (1,), (0, 0))
    assert SpecVLMOptions.parse(options.as_dict()) == options


def test_chain() -> None:
    shape = SpecVLMOptions.parse({"tree": "chain", "num_speculative_tokens": 9, "depth": 5}).shape()
    assert (shape.nodes, shape.depth, shape.width, shape.top_k) == (5, 5, 1, 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"profile": 3}, "write a file"),
        ({"profile": ""}, "write a file"),
        ({"profile": "p.json", "planner": False}, "planner, which is off"),
        ({"profile": "p.json", "tree": "chain"}, "planner, which is off"),
    ],
)
def test_a_profile_is_a_file_for_the_planner(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SpecVLMOptions.parse(given)
    assert SpecVLMOptions.parse({"profile": "p.json"}).profile == "p.json"
