"""Keep the text outputs of an executed notebook in the committed one, and nothing that changes from run to run.

A reader on GitHub sees every number and the description of every figure; nbval has something to compare; diffs stay
small. Usage: ``python book/tools/outputs.py store`` after ``make book``, ``... check`` to verify the committed ones.
"""

from __future__ import annotations

import argparse
import ast
import copy
import re
import sys
from pathlib import Path

import nbformat

BOOK = Path(__file__).resolve().parents[1]
EXECUTED = BOOK.parent / "_build" / "executed"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


PICTURES = ("image/", "application/vnd.ddpm-nb.night")  # not stored
DRAWING = re.compile(r"plots\.(?:show|animate|film|show_choices)\(")


def only_draws(source: str) -> bool:
    """Say whether a cell ends in a figure, or only imports or checks parameters: its code is folded on every page."""
    body = ast.parse(source).body
    if not body:
        return False
    return DRAWING.match(ast.unparse(body[-1])) is not None or not _at_work(body)


def _at_work(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return what does more than import, set the style or check the parameters."""
    quiet = (ast.Import, ast.ImportFrom)
    return [
        node
        for node in body
        if not isinstance(node, quiet) and not ast.unparse(node).startswith(("plots.use_style(", "check_parameters("))
    ]


def _metadata(cell: nbformat.NotebookNode) -> dict[str, object]:
    """Return a cell's tags, and for folded code what hides it: MyST-NB reads the tag, JupyterLab and Colab the rest."""
    tags = [tag for tag in cell.metadata.get("tags", []) if tag != "hide-input"]
    if cell.cell_type != "code":
        return {"tags": tags} if tags else {}
    folded = "hide-cell" in tags or only_draws(cell.source)
    if folded and "hide-cell" not in tags:
        tags.append("hide-input")
    hidden: dict[str, object] = {"cellView": "form", "jupyter": {"source_hidden": True}} if folded else {}
    return hidden | ({"tags": tags} if tags else {})


def normalised(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy with minimal metadata, counts from 1, and outputs without images or run-dependent content."""
    result = copy.deepcopy(notebook)
    result.metadata = nbformat.from_dict(METADATA)
    result.nbformat, result.nbformat_minor = 4, 5
    count = 0
    for cell in result.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict(_metadata(cell))
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [] if "nbval-ignore-output" in tags else [_kept(o, count) for o in _merged(cell.outputs)]
    return result


def _merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring streams of one name: how they are cut depends on timing. Drop stderr (progress bars)."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        same = merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name
        if same:
            merged[-1].text += output.text
        else:
            merged.append(copy.deepcopy(output))
    return merged


def _kept(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    if "data" in output:
        output.data = {kind: data for kind, data in output.data.items() if not kind.startswith(PICTURES)}
        output.metadata = nbformat.from_dict({})
    if output.output_type == "execute_result":
        output.execution_count = count
    return output


def main() -> int:
    """Run ``store`` or ``check``; exit status 1 if a committed notebook is not in normal form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["store", "check"])
    action = parser.parse_args().action
    wrong = []
    for path in sorted(BOOK.glob("*.ipynb")):
        committed = nbformat.read(path, 4)
        wanted = normalised(nbformat.read(EXECUTED / path.name, 4) if action == "store" else committed)
        if action == "store":
            nbformat.write(wanted, path)
        elif wanted != committed:
            wrong.append(path.name)
    if wrong:
        print(f"not in normal form (run `make outputs`): {', '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
