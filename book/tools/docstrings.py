"""Sphinx extension: Markdown links in docstrings, ``[text](#eq-label)``, become links to the book's equations.

A docstring reads the same in an editor and on the API page, and Sphinx checks that the equation exists.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]*)\]\(#(eq-[a-z0-9-]+)\)")


def link_equations(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite the lines of one docstring in place, joining a link that is broken over two lines."""
    text = re.sub(r"(\[[^\]]*)\n\s*([^\]]*\]\(#)", r"\1 \2", "\n".join(lines))
    text = LINK.sub(lambda m: f"{m[1]} :eq:`{m[2]}`" if m[1] else f":eq:`{m[2]}`", text)
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the rewriting."""
    app.connect("autodoc-process-docstring", link_equations)
    return {"parallel_read_safe": True}
