"""Checks of arguments whose errors name the argument, its value, what was expected and the nearest right name.

They look at kinds, shapes and dtypes, and at numbers that the host holds: none waits for a GPU.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'steps'?)`` for the known name nearest to ``name``, or an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def choose(argument: str, name: str, options: Mapping[str, Value]) -> Value:
    """Return ``options[name]``; the error for another name lists the known ones and the nearest of them."""
    if not isinstance(name, str) or name not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(
            f"{argument} = {shown(name)}: expected one of {known}{nearest(str(name), options)}"
        )
    return options[name]


def shown(value: object) -> str:
    """Return a value as an error shows it: a number or a name in full, a tensor by its shape and dtype."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole_number(argument: str, value: object, least: int) -> int:
    """Return ``value`` as an int of at least ``least``; bools and floats are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = value.__index__()  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        raise TypeError(
            f"{argument} = {shown(value)}: expected a whole number, got {type(value).__name__}"
        ) from None
    if number < least:
        raise ValueError(
            f"{argument} = {number}: expected a whole number of at least {least}"
        )
    return number


def real_number(
    argument: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Return ``value`` as a finite float within the bounds that are given; strings, bools and nan are refused.

    ``least`` and ``most`` belong to what is allowed, ``above`` and ``below`` do not. A tensor of one number counts as
    that number.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if (
        math.isfinite(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    ):
        return number
    bounds = {
        "of at least": least,
        "above": above,
        "of at most": most,
        "below": below,
    }
    said = [f"{k} {v:g}" for k, v in bounds.items() if v is not None]
    expected = " and ".join(said)
    message = (
        f"{argument} = {shown(value)}: expected a finite number {expected}"
    )
    if is_number:
        raise ValueError(message.rstrip())
    raise TypeError(f"{message.rstrip()}, got {type(value).__name__}")


def instance(
    argument: str, value: object, kind: type[Value], example: str = ""
) -> Value:
    """Return ``value`` if it is a ``kind``; ``example`` says how to make one."""
    if not isinstance(value, kind):
        hint = f", such as {example}" if example else ""
        raise TypeError(
            f"{argument} = {shown(value)}: expected a {kind.__name__}{hint}, got {type(value).__name__}"
        )
    return value


def function(argument: str, value: Any, signature: str) -> Any:
    """Return ``value`` if it can be called; ``signature`` says with what, as in ``(x_t, t) -> x_0``."""
    if not callable(value):
        raise TypeError(
            f"{argument} = {shown(value)}: expected a function {signature}, got {type(value).__name__}"
        )
    return value


def random_numbers(argument: str, generator: object) -> torch.Generator | None:
    """Return ``generator`` if it is a ``torch.Generator`` or None, which stands for torch's own."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{argument} = {shown(generator)}: expected a torch.Generator, such as "
            f"torch.Generator().manual_seed(0), or None, got {type(generator).__name__}"
        )
    return generator


def floating(argument: str, x: object) -> Tensor:
    """Return ``x`` if it is a tensor of floats: in integers, coefficients would be cut to whole numbers."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{argument} = {shown(x)}: expected a floating-point tensor, got {type(x).__name__}"
        )
    if not x.is_floating_point():
        hint = ""
        if x.dtype == torch.uint8:
            hint = "; for pixels 0 to 255 that is x.float() / 127.5 - 1"
        raise TypeError(
            f"{argument} of dtype {x.dtype}: expected a floating-point tensor{hint}"
        )
    return x


def alike(argument: str, y: object, name: str, x: Tensor) -> Tensor:
    """Return ``y`` if it is a tensor of the shape and the dtype of ``x``, which the error calls ``name``.

    A dtype that ``x`` holds without loss is fine: half precision beside float32.
    """
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{argument} = {shown(y)}: expected a tensor of the shape of {name}, {tuple(x.shape)}, "
            f"got {type(y).__name__}"
        )
    if y.shape != x.shape:
        raise ValueError(
            f"{argument} of shape {tuple(y.shape)}: expected that of {name}, {tuple(x.shape)}"
        )
    if y.dtype != x.dtype and not (
        y.is_floating_point()
        and torch.promote_types(y.dtype, x.dtype) == x.dtype
    ):
        raise TypeError(
            f"{argument} of dtype {y.dtype}: expected that of {name}, {x.dtype}"
        )
    return y


def answer(
    argument: str, asked: Callable[..., Any], x: Tensor, *others: Any
) -> Tensor:
    """Return ``asked(x, *others)``, which must be a tensor of the shape and the dtype of ``x``.

    A network that answers ``(n, 1)`` for ``(n, 2)`` would train by broadcasting.
    """
    function(argument, asked, "of x_t and t")
    return alike(f"the answer of {argument}", asked(x, *others), "x_t", x)
