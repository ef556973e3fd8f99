"""The book's exercises: ``check("1.1", answer)`` says whether an answer is right, and if not, what to look at.

Each exercise asks for a function or a value. A check compares it with an independent computation and words its
message for the slips that readers make; it never shows the solution.
"""

from __future__ import annotations

import importlib
import pkgutil
import textwrap
from typing import Any

from ddpm_nb.arguments import choose
from ddpm_nb.book.exercises.answers import Exercise, NotYet

__all__ = ["check", "exercises", "verdict"]


def exercises() -> dict[str, Exercise]:
    """Return the checks of all chapters by number, '1.1' first."""
    found: dict[str, Exercise] = {}
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    for name in modules:
        if name.startswith("chapter_"):
            found |= importlib.import_module(f"{__name__}.{name}").EXERCISES
    return found


def check(number: str, answer: Any) -> None:
    """Print whether ``answer`` solves exercise ``number`` ('1.1', '1.2', ..), and if not, a hint."""
    message = verdict(number, answer)
    said = "right." if message is None else f"not yet. {message}"
    for line in f"{number}: {said}".splitlines():
        print(textwrap.fill(line, 80, subsequent_indent="    "))


def verdict(number: str, answer: Any) -> str | None:
    """Return None if ``answer`` solves exercise ``number``, otherwise what is wrong with it.

    Raises ``ValueError`` if there is no such exercise; the message names the nearest.
    """
    exercise = choose("number", number, exercises())
    try:
        exercise(answer)
    except NotYet as error:
        return str(error)
    except Exception as error:
        # The reader's code failed: its error is the message.
        return f"Your code raised {type(error).__name__}: {error}"
    return None
