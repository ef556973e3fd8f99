"""Checks of arguments whose errors name the argument, its value, what was expected and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'steps'?)`` for the known name nearest to ``name``, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def choose(argument: str, name: str, options: Mapping[str, Value]) -> Value:
    """Return ``options[name]``; the error for another name lists the known ones and the nearest of them."""
    if name not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(
            f"{argument} = {name!r}: expected one of {known}{nearest(str(name), options)}"
        )
    return options[name]


def whole_number(argument: str, value: object, least: int) -> int:
    """Return ``value`` as an int of at least ``least``; bools and floats are refused."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{argument} = {value!r}: expected a whole number, got {type(value).__name__}"
        )
    number = value.__index__()
    if number < least:
        raise ValueError(
            f"{argument} = {number}: expected a whole number of at least {least}"
        )
    return number
