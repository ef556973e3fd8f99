"""Sphinx extension: a Markdown link to an equation, ``[text](#eq-label)``, shows its text and the equation's number.

In the chapters MyST would show the number alone, "(2.7)", and drop the text. In docstrings nothing would read the link at all.
Either way Sphinx checks that the equation exists.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

LINK = re.compile(r"\[([^\]]*)\]\(#(eq-[a-z0-9-]+)\)")


def link_docstrings(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Rewrite the lines of one docstring in place, joining a link that is broken over two lines."""
    text = re.sub(r"(\[[^\]]*)\n\s*([^\]]*\]\(#)", r"\1 \2", "\n".join(lines))
    text = LINK.sub(lambda m: f"{m[1]} :eq:`{m[2]}`" if m[1] else f":eq:`{m[2]}`", text)
    lines[:] = text.split("\n")


def keep_texts(app: Sphinx, doctree: nodes.document) -> None:
    """Put the text of each link to an equation in front of it; a text that only repeats the label is dropped."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        label = reference.get("reftarget", "")
        text = reference.astext().strip()
        if label.startswith("eq-") and reference.get("reftype") == "myst" and text.strip("()") not in ("", label):
            words = nodes.inline("", "", *[child.deepcopy() for child in reference.children])
            reference.parent.insert(reference.parent.index(reference), [words, nodes.Text("\N{NO-BREAK SPACE}")])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both rewritings."""
    app.connect("autodoc-process-docstring", link_docstrings)
    app.connect("doctree-read", keep_texts)
    return {"parallel_read_safe": True}
