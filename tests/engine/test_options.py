from __future__ import annotations

from typing import Any

import pytest

from vllm_specvlm.engine.options import SpecVLMOptions


def test_defaults_alone_are_a_lookup_drafter() -> None:
    options = SpecVLMOptions.parse({"method": "specvlm"})
    assert options.model is None
    shape = options.shape()
    assert (shape.nodes, shape.depth) == (16, 16)
    assert options.plans


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


def test_the_planner_is_for_dynamic_trees() -> None:
    assert SpecVLMOptions.parse({"model": "d"}).plans
    assert not SpecVLMOptions.parse({"model": "d", "tree": "chain"}).plans
    assert not SpecVLMOptions.parse({"model": "d", "paths": [[0]]}).plans
    assert not SpecVLMOptions.parse({"model": "d", "planner": False}).plans
    for fixed in ({"tree": "chain"}, {"paths": [[0], [1]]}):
        with pytest.raises(ValueError, match="Option 'planner' needs dynamic trees"):
            SpecVLMOptions.parse({"planner": True, **fixed})
    with pytest.raises(ValueError, match="Option 'planner' is 'yes'; write true or false"):
        SpecVLMOptions.parse({"planner": "yes"})


def test_default_depths() -> None:
    depths = {
        depth: SpecVLMOptions.parse(given).shape().depth
        for depth, given in {
            12: {"model": "d"},
            6: {"model": "d", "planner": False},
            16: {},
            5: {"model": "d", "num_speculative_tokens": 5},
            3: {"model": "d", "depth": 3},
        }.items()
    }
    assert all(depth == found for depth, found in depths.items())
    shape = SpecVLMOptions.parse({"model": "d"}).shape()
    assert (shape.nodes, shape.width, shape.top_k) == (16, 4, 4)
