from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_specvlm.compress.compressor import CompressorConfig, count
from vllm_specvlm.compress.config import KINDS
from vllm_specvlm.compress.count import kept

PRUNE = {"kind": "prune", "ratio": 4}


@pytest.mark.parametrize(
    "config",
    [
        *map(CompressorConfig, KINDS),
        CompressorConfig("pool", ratio=2.5),
        CompressorConfig("global", queries=5),
        CompressorConfig("weight", ratio=10),
        CompressorConfig("select", gate_hidden=7, branches=(CompressorConfig("none"), CompressorConfig("global"))),
    ],
    ids=str,
)
def test_comes_back_from_json(config: CompressorConfig) -> None:
    assert CompressorConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_defaults_are_written_out() -> None:
    # A head that was trained under today's defaults must not change with tomorrow's.
    assert CompressorConfig("resampler").as_dict() == {"kind": "resampler", "queries": 2}
    assert CompressorConfig().as_dict() == {
        "kind": "select",
        "gate_hidden": 256,
        "branches": [
            {"kind": "prune", "ratio": 20.0},
            {"kind": "pool", "ratio": 20.0},
            {"kind": "conv", "ratio": 3.0},
            {"kind": "resampler", "queries": 2},
            {"kind": "text"},
        ],
    }


def test_weight_leaves_out_a_convolution_that_cannot_have_its_ratio() -> None:
    def branches(config: CompressorConfig) -> list[tuple[str, float]]:
        return [(branch.kind, branch.ratio) for branch in config.branches]

    assert branches(CompressorConfig("weight")) == [("prune", 3.0), ("pool", 3.0), ("conv", 3.0)]
    assert branches(CompressorConfig("weight", ratio=10)) == [("prune", 10.0), ("pool", 10.0)]


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("pool", "write an object"),
        ({"kind": "attention"}, "no compressor of kind 'attention'"),
        ({"kind": ["pool"]}, "no compressor of kind"),
        ({"kind": "pool", "stride": 2}, "has no 'stride'"),
        ({"kind": "pool", "queries": 2}, "kind 'pool' has no 'queries'"),
        ({"kind": "resampler", "ratio": 10.0}, "kind 'resampler' has no 'ratio'"),
        ({"kind": "pool", "ratio": "10"}, "'ratio' of a compressor is '10'"),
        ({"kind": "pool", "ratio": True}, "'ratio' of a compressor is True"),
        ({"kind": "pool", "ratio": 0.5}, "is 0.5; write a number from 1 up"),
        ({"kind": "pool", "ratio": float("nan")}, "from 1 up"),
        ({"kind": "pool", "ratio": float("inf")}, "from 1 up"),
        ({"kind": "conv", "ratio": 6}, "is 6; write a whole number from 1 to 5"),
        ({"kind": "conv", "ratio": 2.5}, "is 2.5; write a whole number from 1 to 5"),
        ({"kind": "resampler", "queries": -1}, "write 1 or more"),
        ({"kind": "resampler", "queries": 2.0}, "write a whole number"),
        ({"kind": "global", "queries": 1}, "write 2 or more"),
        ({"kind": "adaptor", "heads": -1}, "'heads' of a compressor is -1; write 1 or more"),
        ({"kind": "global", "heads": 4}, "kind 'global' has no 'heads'"),
        ({"kind": "select", "gate_hidden": -3}, "is -3; write 1 or more"),
        ({"kind": "pool", "branches": [PRUNE, PRUNE]}, "has no 'branches'"),
        ({"kind": "select", "branches": [PRUNE]}, "has 1 branch"),
        ({"kind": "select", "branches": PRUNE}, "write a list"),
        ({"kind": "select", "branches": [PRUNE, "pool"]}, "write an object"),
        ({"kind": "select", "branches": [PRUNE, {"kind": "select"}]}, "cannot have a branch of kind 'select'"),
        ({"kind": "concat", "branches": [PRUNE, {"kind": "text"}]}, "cannot have a branch of kind 'text'"),
        ({"kind": "weight", "ratio": 4, "branches": [PRUNE, {"kind": "resampler"}]}, "of kind 'resampler'"),
        ({"kind": "weight", "ratio": 4, "branches": [PRUNE, {"kind": "pool", "ratio": 3}]}, "branch of ratio 3"),
    ],
)
def test_refuses_in_one_sentence(data: Any, part: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+\.$") as refusal:
        CompressorConfig.from_dict(data)
    assert part in str(refusal.value)


def test_kept_is_the_ceiling_and_within_the_picture() -> None:
    assert [kept(visual, 10.0) for visual in (1, 4, 10, 11, 576)] == [1, 1, 1, 2, 58]
    assert all(1 <= kept(visual, ratio) <= visual for visual in range(1, 400) for ratio in (1.0, 1.1, 2.4, 7.0, 1e9))


def test_count_of_the_branches() -> None:
    assert count(CompressorConfig(), 576) == 192
    assert count(CompressorConfig("concat"), 576) == 29 + 29 + 192 + 2
    assert count(CompressorConfig("concat"), 4) == 4
    assert count(CompressorConfig("text"), 576) == 0
    assert [count(CompressorConfig("pool", ratio=10.0), visual) for visual in (144, 576)] == [
        15,
        58,
    ]  # as serving has it
