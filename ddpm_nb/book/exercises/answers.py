"""What the checks of all chapters share: how an answer is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Exercise = Callable[[Any], None]  # raises NotYet if the answer is not right


class NotYet(Exception):  # noqa: N818 (it reads as what it says)
    """An answer is not right; the message says in which respect, and where to look."""
