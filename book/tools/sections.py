"""What is core and what is aside in a chapter, and how much of each there is.

A section whose heading begins with "Aside:" may be skipped, with all beneath it up to the next heading of its level.
``python book/tools/sections.py [FOLDER]`` prints words, displays, figures and visible lines of code of each chapter, and what
the core leans on although an aside defines it.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import equations
import nbformat
from outputs import only_draws

BOOK = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^(#+) +(.*)$")


def passages(notebook: nbformat.NotebookNode) -> Iterator[tuple[bool, str, nbformat.NotebookNode]]:
    """Yield the notebook in order: whether a piece is an aside, its text, its cell. Cells of prose are cut at headings."""
    level = 0  # of the heading that opened the aside, 0 in the core
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            yield level > 0, cell.source, cell
            continue
        piece: list[str] = []
        fenced = False
        for line in cell.source.split("\n"):
            fenced ^= line.lstrip().startswith("```")
            heading = None if fenced else HEADING.match(line)
            if heading:
                yield level > 0, "\n".join(piece), cell
                piece = []
                depth = len(heading[1])
                if level and depth <= level:
                    level = 0
                if not level and heading[2].startswith("Aside:"):
                    level = depth
            piece.append(line)
        yield level > 0, "\n".join(piece), cell


def amounts(notebook: nbformat.NotebookNode) -> dict[bool, Counter[str]]:
    """Return words, displays, figures and visible lines of code, of the asides (``True``) and of the core."""
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for aside, text, cell in passages(notebook):
        count = found[aside]
        if cell.cell_type == "markdown":
            count["displays"] += text.count("$$") // 2
            count["words"] += len(re.sub(r"\$\$.*?\$\$|\$[^$]*\$", "", text, flags=re.DOTALL).split())
        else:
            folded = only_draws(text) or "hide-cell" in cell.metadata.get("tags", [])
            count["figures"] += "plots." in text and only_draws(text) and "import" not in text
            count["code lines"] += 0 if folded else len(text.splitlines())
    return found


def leans_on_asides(notebooks: dict[str, nbformat.NotebookNode]) -> list[str]:
    """Return what core passages use although only an aside defines it: equations of any chapter, names of the own one."""
    of_asides = {
        label
        for notebook in notebooks.values()
        for aside, text, cell in passages(notebook)
        if aside and cell.cell_type == "markdown"
        for label, _ in equations.defined(text)
    }
    problems = []
    for name, notebook in notebooks.items():
        core: set[str] = set(dir(builtins))
        later: set[str] = set()
        for aside, text, cell in passages(notebook):
            if cell.cell_type == "markdown":
                if not aside:
                    found = {link["label"] for link in equations.LINK.finditer(text)} & of_asides
                    problems += [f"{name}: core text links to {label}" for label in sorted(found)]
                continue
            names = list(ast.walk(ast.parse(text)))
            stored = {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            stored |= {n.name for n in names if isinstance(n, ast.FunctionDef)} | {
                n.arg for n in names if isinstance(n, ast.arg)
            }
            stored |= {
                (a.asname or a.name).split(".")[0]
                for n in names
                if isinstance(n, ast.Import | ast.ImportFrom)
                for a in n.names
            }
            if aside:
                later |= stored
                continue
            core |= stored
            used = {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            problems += [
                f"{name}: core code uses {word}, which an aside defines" for word in sorted((used - core) & later)
            ]
    return problems


def main() -> int:
    """Print the amounts of every chapter; exit status 1 if the core leans on an aside."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else BOOK
    notebooks = {path.stem: nbformat.read(path, 4) for path in sorted(folder.glob("*.ipynb"))}
    kinds = ("words", "displays", "figures", "code lines")
    print("core + aside         " + "".join(f"{kind:>14}" for kind in kinds))
    for name, notebook in notebooks.items():
        found = amounts(notebook)
        print(f"{name:21}" + "".join(f"{f'{found[False][k]} + {found[True][k]}':>14}" for k in kinds))
    problems = leans_on_asides(notebooks)
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
