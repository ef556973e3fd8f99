"""Stubs and solutions of the exercises, as they stand in the notebooks."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ddpm_nb.book.exercises import verdict

BOOK = Path(__file__).resolve().parents[2] / "book"


@cache
def cells(chapter: int) -> list[nbformat.NotebookNode]:
    (path,) = BOOK.glob(f"{chapter:02d}-*.ipynb")
    return nbformat.read(path, 4).cells


def defined(source: str, preamble: str) -> Any:
    """Run a cell's imports and definitions, without its check, and return the last name it defines."""
    namespace: dict[str, Any] = {}
    exec(preamble, namespace)
    before = set(namespace)
    exec(re.sub(r"^check\(.*\)$", "", source, flags=re.MULTILINE), namespace)
    return namespace[[name for name in namespace if name not in before][-1]]


def preamble(chapter: int) -> str:
    """The import cell of the chapter."""
    return next(c.source for c in cells(chapter) if c.cell_type == "code" and "plots.use_style()" in c.source)


@pytest.fixture
def stub() -> Any:
    def of(number: str) -> Any:
        chapter = int(number.split(".")[0])
        source = next(c.source for c in cells(chapter) if c.cell_type == "code" and f'check("{number}"' in c.source)
        return defined(source, preamble(chapter))

    return of


@pytest.fixture
def solution() -> Any:
    def of(number: str) -> Any:
        chapter = int(number.split(".")[0])
        text = next(c.source for c in cells(chapter) if f"<summary>Solution {number}</summary>" in c.source)
        (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        return defined(block, preamble(chapter))

    return of


@pytest.fixture
def slip_is_told() -> Callable[[str, Any, str], None]:
    def check(number: str, answer: Any, phrase: str) -> None:
        """Assert that an answer is refused with a message in which ``phrase``, a regular expression, is found."""
        message = verdict(number, answer)
        assert message is not None
        assert re.search(phrase, message), message

    return check
