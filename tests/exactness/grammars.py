"""Grammars of every kind for the tiny checkpoints, whose answers are random words."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import StructuredOutputsParams

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "maxLength": 12},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["tree", "tale", "red"]}, "minItems": 2, "maxItems": 9},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}
_EBNF = 'root ::= (word " ")+\nword ::= "tree" | "tale" | "the" | [a-m] [n-z]+'
_LARK = 'start: (WORD " ")+\nWORD: "tree" | "tale" | "the" | /[a-m][n-z]+/'

KINDS = ("json", "regex", "choice", "grammar", "json object", "open regex")
"""`choice` ends within a few tokens, `regex` after some, `open regex` never."""


def grammar(kind: str, backend: str = "xgrammar") -> StructuredOutputsParams:
    """A new object each time: vLLM notes in it which backend it went to."""
    options: dict[str, dict[str, Any]] = {
        "json": {"json": SCHEMA},
        "regex": {"regex": "[a-z]{2,9}( [a-z]{2,9}){3,6}\\."},
        "choice": {"choice": ["red tree", "red tale", "blue tree", "the tale of the red tree"]},
        "grammar": {"grammar": _LARK if backend == "guidance" else _EBNF},
        "json object": {"json_object": True},
        "open regex": {"regex": "[a-z ]{200,}"},
    }
    return StructuredOutputsParams(**options[kind])
