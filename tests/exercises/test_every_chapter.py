"""What holds for the exercises of all chapters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from ddpm_nb.book.exercises import exercises, verdict


@pytest.mark.parametrize("number", exercises())
def test_a_reader_may_rename_the_arguments(number: str, solution: Any) -> None:
    answer = solution(number)
    if not inspect.isfunction(answer):
        assert verdict(number, answer) is None  # a value has no arguments
        return
    names = [f"renamed_{i}" for i in range(len(inspect.signature(answer).parameters))]
    renamed = eval(f"lambda {', '.join(names)}: answer({', '.join(names)})", {"answer": answer})
    assert verdict(number, renamed) is None
