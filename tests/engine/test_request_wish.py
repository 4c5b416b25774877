from __future__ import annotations

from typing import Any

import pytest

from vllm_specvlm.engine.request_wish import RequestWish


@pytest.mark.parametrize(
    ("extra", "wish"),
    [
        (None, RequestWish()),
        ({"other": 3}, RequestWish()),
        ({"specvlm": "on"}, RequestWish()),
        ({"specvlm": "off", "specvlm_nodes": 9}, RequestWish(nodes=0)),
        ({"specvlm_nodes": 8, "specvlm_depth": "4"}, RequestWish(8, 4)),
        ({"specvlm_nodes": 8.0}, RequestWish(8)),
    ],
)
def test_wishes(extra: dict[str, Any] | None, wish: RequestWish) -> None:
    assert RequestWish.parse(extra) == wish


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"specvlm": "no"}, "'specvlm' is 'no'; write \"on\" or \"off\""),
        ({"specvlm": False}, "'specvlm' is False"),
        ({"specvlm_nodes": 128}, "'specvlm_nodes' is 128; write a whole number from 0 to 127"),
        ({"specvlm_depth": -1}, "'specvlm_depth' is -1"),
        ({"specvlm_depth": "x"}, "'specvlm_depth' is 'x'"),
        ({"specvlm_nodes": True}, "'specvlm_nodes' is True"),
        ({"specvlm_nodes": [3]}, "'specvlm_nodes' is [3]"),
        ({"specvlm_width": 3}, "Unknown request argument 'specvlm_width'"),
    ],
)
def test_what_is_no_wish(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        RequestWish.parse(extra)
    assert says in str(caught.value)
