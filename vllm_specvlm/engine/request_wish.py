"""What one request asks of speculation, in `SamplingParams.extra_args` (`vllm_xargs` over HTTP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_specvlm.tree.token_tree import MAX_NODES


@dataclass(frozen=True, slots=True)
class RequestWish:
    """Bounds of one request's trees, within the engine's own."""

    nodes: int = MAX_NODES
    depth: int = MAX_NODES

    @classmethod
    def parse(cls, extra_args: Mapping[str, Any] | None) -> RequestWish:
        """`{"specvlm": "off"}`, `{"specvlm_nodes": 8, "specvlm_depth": 4}`; over HTTP values may come as text.

        Raises:
            ValueError: a value is none of these.
        """
        if not isinstance(extra_args, Mapping | None):
            raise ValueError("The request's extra arguments are no dictionary; write one, or leave them out.")
        named = ((key, value) for key, value in (extra_args or {}).items() if isinstance(key, str))
        given = {key: value for key, value in named if key.startswith("specvlm")}
        unknown = sorted(set(given) - {"specvlm", "specvlm_nodes", "specvlm_depth"})
        if unknown:
            raise ValueError(
                f"Unknown request argument {unknown[0]!r}; write 'specvlm', 'specvlm_nodes' or 'specvlm_depth'."
            )
        switch = given.get("specvlm", "on")
        if not isinstance(switch, str) or switch not in ("on", "off"):
            raise ValueError(f'Request argument \'specvlm\' is {switch!r}; write "on" or "off".')
        bounds = {
            name: _bound(f"specvlm_{name}", given.get(f"specvlm_{name}", MAX_NODES)) for name in ("nodes", "depth")
        }
        return cls(0 if switch == "off" else bounds["nodes"], bounds["depth"])


def _bound(name: str, value: object) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_NODES:
        raise ValueError(f"Request argument '{name}' is {value!r}; write a whole number from 0 to {MAX_NODES}.")
    return number
