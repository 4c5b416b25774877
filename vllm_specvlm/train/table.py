"""A table of a TOML file as a dataclass, strictly: every key is known and every value has its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vllm_specvlm.train.errors import RecipeError

T = TypeVar("T")


def read(made: type[T], table: Mapping[str, Any], where: str) -> T:
    """`table` as the dataclass `made`, whose fields are numbers, strings, tuples of them, or dataclasses again.

    Args:
        made: fields without a default are required. A field of another type with a `from_dict` is read by that.
        table: parsed TOML.
        where: the table's name for messages, such as "[head]".

    Raises:
        RecipeError: an unknown or missing key, a value of the wrong type, or what the dataclass itself refuses.
    """
    if not isinstance(table, Mapping):
        raise RecipeError(f"{where} is {table!r}; write a table.")
    hints = typing.get_type_hints(made)
    fields = {field.name: field for field in dataclasses.fields(made) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise RecipeError(f"{where} has no key '{key}'; its keys are {', '.join(fields)}.")
    for key, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and key not in table:
            raise RecipeError(f"{where} needs the key '{key}'.")
    values = {key: _value(hints[key], value, f"{where} '{key}'") for key, value in table.items()}
    try:
        return made(**values)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _value(next(each for each in typing.get_args(hint) if each is not type(None)), value, where)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r}; write a list.")
        return tuple(_value(item, each, where) for each in value)
    if hasattr(hint, "from_dict"):
        try:
            return hint.from_dict(value)
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(Any, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
        raise RecipeError(f"{where} is {value!r}; write {names[hint]}.")
    return value
