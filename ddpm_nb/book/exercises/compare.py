"""Compare a reader's function with an independent computation, and recognize the slips that readers make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_nb.book.exercises.answers import NotYet

Function = Callable[..., Any]
Case = Mapping[str, Any]


class Slip(NamedTuple):
    """A wrong value of one output that readers compute, and the words that say where to look."""

    function: Function
    message: str
    output: int = 0


class _Miss(NamedTuple):
    """One output that is not right in one case."""

    case: Case
    output: int
    found: Tensor
    expected: Tensor
    excess: float  # deviation in units of the tolerance, infinite for values that are not finite


def compare(
    answer: Function,
    truth: Function,
    cases: Sequence[Case],
    slips: Sequence[Slip] = (),
    outputs: Sequence[str] = ("result",),
    tolerance: float = 1e-9,
    floor: float = 1e-12,
) -> None:
    """Raise ``NotYet`` unless ``answer(**case)`` is ``truth(**case)`` in every case, within tolerance · value + floor.

    The first of ``outputs`` that misses is reported for the case in which it misses most, with the message of the first
    slip that gives the same wrong values wherever the answer is wrong.
    """
    misses = [
        miss
        for case in cases
        for miss in _misses(answer, truth, case, outputs, tolerance, floor)
    ]
    if not misses:
        return
    output = min(miss.output for miss in misses)
    misses = [miss for miss in misses if miss.output == output]
    worst = max(misses, key=lambda miss: miss.excess)
    hints = [
        slip.message
        for slip in slips
        if slip.output == output and _explains(slip.function, misses)
    ]
    near = worst.excess * tolerance < 1e-4 and worst.excess < float("inf")
    if near and not hints:
        hints = [
            "That is nearly right: does a single-precision number, a rounded constant or an approximation enter?"
        ]
    raise NotYet(" ".join([_difference(worst, outputs[output]), *hints[:1]]))


def call(
    answer: Function, case: Case, outputs: Sequence[str] = ("result",)
) -> list[Tensor]:
    """Return the outputs of ``answer`` on a copy of ``case``, by position, as float64 tensors.

    ``NotYet`` if they are no numbers.
    """
    if not callable(answer):
        raise NotYet(
            f"Expected a function, got {type(answer).__name__}: pass the function itself, without calling it."
        )
    copies = {
        name: value.clone() if torch.is_tensor(value) else value
        for name, value in case.items()
    }
    # By position: a reader may rename the arguments.
    result = answer(*copies.values())
    if result is None:
        raise NotYet(
            "The function returned None: replace the line with the dots."
        )
    several = isinstance(result, tuple | list) and len(outputs) > 1
    values = list(result) if several else [result]
    if len(values) != len(outputs):
        raise NotYet(
            f"The function returned {_count(len(values))}, expected {len(outputs)}: {', '.join(outputs)}."
        )
    if any(value is None for value in values):
        raise NotYet(
            "The function returned None in one place: replace the line with the dots."
        )
    try:
        return [
            torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
            for value in values
        ]
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(
            f"The function returned {type(result).__name__}, expected numbers or tensors."
        ) from None


def _misses(
    answer: Function,
    truth: Function,
    case: Case,
    outputs: Sequence[str],
    tolerance: float,
    floor: float,
) -> list[_Miss]:
    misses = []
    pairs = zip(call(answer, case, outputs), call(truth, case, outputs))
    for output, (found, expected) in enumerate(pairs):
        if found.numel() == expected.numel() == 1:
            # A number is welcome in any wrapping.
            found = found.reshape(expected.shape)
        if found.shape != expected.shape:
            raise NotYet(
                f"{_at(case)}: {outputs[output]} of shape {tuple(found.shape)}, "
                f"expected {tuple(expected.shape)}."
            )
        allowed = (tolerance * expected.abs() + floor).clamp(min=1e-300)
        excess = (found - expected).abs() / allowed
        excess = excess.nan_to_num(nan=float("inf"))
        if excess.numel() and excess.max() > 1:
            most = excess.max().item()
            misses.append(_Miss(case, output, found, expected, most))
    return misses


def _explains(slip: Function, misses: Sequence[_Miss]) -> bool:
    for miss in misses:
        try:
            made = slip(**miss.case)
        except (ArithmeticError, LookupError, ValueError, RuntimeError):
            return False
        made = torch.as_tensor(made, dtype=torch.float64)
        if made.numel() != miss.found.numel():
            return False
        pair = made.reshape(miss.found.shape), miss.found
        if not torch.allclose(*pair, rtol=1e-6, atol=1e-12, equal_nan=True):
            return False
    return True


def _difference(miss: _Miss, output: str) -> str:
    """Say what differs, where and by how much."""
    difference = (miss.found - miss.expected).flatten()
    if not bool(torch.isfinite(miss.found).all()):
        found = _number(miss.found)
        return f"{_at(miss.case)}: {output} is not finite ({found})."
    at, n = int(difference.abs().argmax()), len(difference)
    value, off = miss.found.flatten()[at].item(), difference[at].item()
    place = f" number {at + 1} of {n}" if n > 1 else ""
    sign = "large" if off > 0 else "small"
    return (
        f"{_at(miss.case)}: {output}{place} is {value:.4g}, "
        f"too {sign} by {abs(off):.2g}."
    )


def _at(case: Case) -> str:
    values = [f"{name} = {_number(value)}" for name, value in case.items()]
    return f"At {', '.join(values)}"


def _number(value: Any) -> str:
    if not torch.is_tensor(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if value.ndim == 0:
        return f"{value.item():.4g}"
    if value.ndim == 1 and len(value) <= 6:
        numbers = [f"{number:.4g}" for number in value.tolist()]
        return f"[{', '.join(numbers)}]"
    return f"a tensor of shape {tuple(value.shape)}"


def _count(number: int) -> str:
    return "one value" if number == 1 else f"{number} values"
