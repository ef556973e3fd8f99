"""Exercises of chapter 9: the stub fails, the solution passes, and every slip is told where to look."""

from __future__ import annotations

from typing import Any

import pytest

from ddpm_nb.book.exercises import verdict

NUMBERS = ("9.1", "9.2", "9.3")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_stub_is_not_yet_right_and_the_solution_is(number: str, stub: Any, solution: Any) -> None:
    assert "replace the line with the dots" in verdict(number, stub(number))
    assert verdict(number, solution(number)) is None


def tilted(mass: Any, rate: Any = lambda mass, p, c: mass.sum() / (p * c).sum()) -> Any:
    def answer(p: Any, c: Any, w: float) -> Any:
        found = mass(p, c, w)
        return found / found.sum(), rate(found, p, c)

    return answer


SLIPS = [
    ("9.1", lambda a, b, w: b + w * (a - b), "this book's weight"),
    ("9.1", lambda a, b, w: (1 + w) * b - w * a, "changed places"),
    ("9.1", lambda a, b, w: (1 + w) * a + w * b, "sum to one"),
    ("9.2", lambda p, c, w: (p * c**w, (p * c**w).sum()), "divide by the normalizer"),
    ("9.2", tilted(lambda p, c, w: (p * c) ** w), "Only p(y | x) is raised"),
    ("9.2", tilted(lambda p, c, w: p * c**w, lambda mass, p, c: mass.sum()), "whose normalizer is p(y)"),
    ("9.3", lambda tau, w, a: ((tau**2 / (1 + tau**2)) ** w, tau**2 / (tau**2 + w)), "noise at the start"),
    ("9.3", lambda tau, w, a: (tau**2 / a / ((1 + tau**2) / a - 1), tau**2 / (tau**2 + w)), "The weight is missing"),
    (
        "9.3",
        lambda tau, w, a: ((tau**2 / a / ((1 + tau**2) / a - 1)) ** w, tau**2 / (1 + tau**2)),
        "counts w times",
    ),
]


@pytest.mark.parametrize(("number", "answer", "hint"), SLIPS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(SLIPS)])
def test_every_slip_is_told_where_to_look(number: str, answer: Any, hint: str) -> None:
    assert hint in verdict(number, answer)
