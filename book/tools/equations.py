r"""Numbers and anchors of the chapters' equations, in a form that every reader of a notebook understands.

A committed notebook carries ``<a id="eq-name"></a>`` above a formula and ``\tag{1.4}`` in it, and a link to it reads
``[the sum rule (1.4)](#eq-name)``, or ``(01-gaussians.ipynb#eq-name)`` from another chapter. JupyterLab, Colab and GitHub
show the number and follow the link. An author writes ``$$ … $$ (eq-name)`` and ``[the sum rule](#eq-name)``;
``python book/tools/equations.py number`` brings all chapters into the committed form, and ``... check`` says whether they are.
When the book is rendered, ``myst`` turns them back, so that Sphinx numbers the equations itself and resolves the links.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat

BOOK = Path(__file__).resolve().parents[1]
LABEL = r"eq-[a-z0-9-]+"
WRITTEN = re.compile(rf"^(?P<indent> *)\$\$(?P<body>(?:(?!\$\$).)+?)\s*\$\$ \((?P<label>{LABEL})\)", re.M | re.S)
TAGGED = re.compile(
    rf'^(?P<indent> *)<a id="(?P<label>{LABEL})"></a>\n\n *\$\$(?P<body>(?:(?!\$\$).)+?)\s*'
    r"\\tag\{(?P<number>[\d.]+)\}\s*\$\$",
    re.M | re.S,
)
LINK = re.compile(rf"\[(?P<text>[^\]]*)\]\((?P<page>[\w.-]*\.ipynb)?#(?P<label>{LABEL})\)")
NUMBER = re.compile(r"[ \N{NO-BREAK SPACE}]?\(\d+\.\d+\)$")
API_LINK = re.compile(r"\]\((?:api\.md)?#(ddpm_nb[\w.]*)\)")


def defined(source: str) -> Iterator[tuple[str, str | None]]:
    """Yield the label of each equation of a cell, in order, and the number it carries: none before it is numbered."""
    found = [(m.start(), m["label"], m["number"]) for m in TAGGED.finditer(source)]
    found += [(m.start(), m["label"], None) for m in WRITTEN.finditer(source)]
    for _, label, number in sorted(found):
        yield label, number


def prose(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    """Yield the Markdown cells."""
    return (cell for cell in notebook.cells if cell.cell_type == "markdown")


def numbers(notebooks: Mapping[str, nbformat.NotebookNode]) -> dict[str, tuple[str, str]]:
    """Return chapter and number of each label, counted as Sphinx counts: chapter, then place in the chapter."""
    found: dict[str, tuple[str, str]] = {}
    for name, notebook in notebooks.items():
        count = 0
        for cell in prose(notebook):
            for label, _ in defined(cell.source):
                if label in found:
                    raise ValueError(f"{name}: {label} is defined in {found[label][0]} already")
                count += 1
                found[label] = name, f"{int(name[:2])}.{count}"
    return found


def portable(source: str, chapter: str, where: Mapping[str, tuple[str, str]]) -> str:
    """Return a cell of a chapter in the committed form. Raises ``KeyError`` for a link to an unknown label."""

    def equation(match: re.Match[str]) -> str:
        indent, label = match["indent"], match["label"]
        body = match["body"].strip("\n").rstrip()
        body = body if body.startswith(" ") or not indent else body.lstrip()
        lines = [f'<a id="{label}"></a>', "", "$$", *body.split("\n"), rf"\tag{{{where[label][1]}}}", "$$"]
        return "\n".join(line if line.startswith(indent) or not line else indent + line for line in lines)

    def link(match: re.Match[str]) -> str:
        page, number = where[match["label"]]
        text = NUMBER.sub("", match["text"])
        text = "" if text.strip("()") == match["label"] else text
        text = f"{text} ({number})" if text else f"({number})"
        return f"[{text}]({'' if page == chapter else f'{page}.ipynb'}#{match['label']})"

    source = TAGGED.sub(equation, WRITTEN.sub(equation, source))
    return API_LINK.sub(r"](api.md#\1)", LINK.sub(link, source))


def myst(source: str) -> str:
    """Return a committed cell as MyST reads it: labels after the formulas, links without numbers and pages."""
    source = TAGGED.sub(lambda m: f"{m['indent']}$${m['body']}\n{m['indent']}$$ ({m['label']})", source)
    source = LINK.sub(lambda m: f"[{NUMBER.sub('', m['text'])}](#{m['label']})", source)
    return API_LINK.sub(r"](#\1)", source)


def main() -> int:
    """Run ``number`` or ``check``; exit status 1 if a chapter is not in the committed form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["number", "check"])
    action = parser.parse_args().action
    notebooks = {path.stem: nbformat.read(path, 4) for path in sorted(BOOK.glob("*.ipynb"))}
    where, changed = numbers(notebooks), []
    for name, notebook in notebooks.items():
        before = [cell.source for cell in prose(notebook)]
        for cell in prose(notebook):
            cell.source = portable(cell.source, name, where)
        if before != [cell.source for cell in prose(notebook)]:
            changed.append(name)
            if action == "number":
                nbformat.write(notebook, BOOK / f"{name}.ipynb")
    print(f"{'numbered' if action == 'number' else 'not numbered'}: {', '.join(changed) or 'none'}")
    return action == "check" and bool(changed)


if __name__ == "__main__":
    sys.exit(main())
