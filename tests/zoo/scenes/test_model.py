"""The scenes target as it ships. Its tower is downloaded (90 MB, once), so this is no test for every day."""

from __future__ import annotations

import pytest

from vllm_specvlm.zoo.pair import default_home
from vllm_specvlm.zoo.scenes import scenes_target
from vllm_specvlm.zoo.scenes.evaluate import evaluate


@pytest.mark.slow
def test_it_reads_pictures() -> None:
    report = evaluate(scenes_target("scenes-target", default_home()), per_task=6)
    for task in ("read", "chart", "vqa"):
        right, wrong = (report["tasks"][task][which]["facts"] for which in ("right_picture", "wrong_picture"))
        assert right > wrong + 0.1, f"{task}: {right} with the right picture, {wrong} with another"
