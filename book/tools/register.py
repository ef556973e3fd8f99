"""The register of the five documents' statements, and the pages made from it: verification table and errata.

``book/register/<topic>.yaml`` holds one entry for each statement: where it stands, what it says, the verdict, the equation
of the book that covers it, the function that implements it and the test that proves it. ``derivations/<chapter>.yaml`` lists
the numbered equations that no document states: the steps in between.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Any

import equations
import nbformat
import yaml

BOOK = Path(__file__).resolve().parents[1]
REGISTER = BOOK / "register"
REPOSITORY = yaml.safe_load((BOOK.parent / "_config.yml").read_text())["repository"]["url"]
DOCUMENTS = ("Roysdon", "Vilhes", "Fireflies", "Li", "Malhotra")
TOPICS = {
    "gaussians": "01-gaussians",
    "forward": "02-forward",
    "posterior": "03-posterior",
    "vae": "04-elbo-to-mse",
    "elbo": "04-elbo-to-mse",
    "parameterizations": "04-elbo-to-mse",
    "sde": "05-sde",
    "training": "06-training",
    "sampling": "07-sampling",
    "inverse": "08-inverse-problems",
}
TITLES = {
    "gaussians": "Gaussians",
    "forward": "The forward process",
    "posterior": "The forward posterior",
    "vae": "Variational autoencoders",
    "elbo": "The bound",
    "parameterizations": "Means, weights and targets",
    "sde": "The SDE view",
    "training": "Training",
    "sampling": "Sampling",
    "inverse": "Inverse problems",
}
ERRATA = ("wrong", "misprint", "imprecise")
_PLACE = r"<(\w+)(?::([^<>]+))?>"  # braces would clash with those of TeX
VERDICTS = ("correct", *ERRATA, "convention", "missing")


@dataclass(frozen=True)
class Statement:
    """One statement of a document.

    Parameters
    ----------
    id : the document's letter and a name, unique
    document, place : where it stands
    says : what it states, in our words
    verdict : 'correct'; 'wrong', 'misprint' or 'imprecise' (these are errata); 'convention' (true in another convention);
        'missing' (the text refers to a formula that it does not show, or uses an unstated fact)
    equation : label of the book's equation that covers it
    function : full name of the function, method or object of the package that implements it
    test : ``tests/file.py::test_name``, the proof; empty only with ``undecided``
    printed, corrected, why : for errata, the formula or phrase as printed, as it should be, and the reason
    size : for errata, name of the function in ``errata/<topic>.py`` that computes how large the error is
    amount : the sentence that says so, a template: ``<name:.2f>`` stands for the number ``name`` of that function
    undecided : for a claim in prose that no test can decide, why not
    """

    id: str
    document: str
    place: str
    says: str
    verdict: str
    equation: str = ""
    function: str = ""
    test: str = ""
    printed: str = ""
    corrected: str = ""
    why: str = ""
    size: str = ""
    amount: str = ""
    undecided: str = ""


def statements() -> dict[str, list[Statement]]:
    """Return the register by topic, in the order of the chapters."""
    files = {topic: REGISTER / f"{topic}.yaml" for topic in TOPICS}
    return {
        topic: [Statement(**row) for row in yaml.safe_load(path.read_text())]
        for topic, path in files.items()
        if path.is_file()
    }


def derivations() -> dict[str, str]:
    """Return the labels of equations that belong to a derivation rather than to a document, and what each is."""
    found: dict[str, str] = {}
    for path in sorted((REGISTER / "derivations").glob("*.yaml")):
        found |= yaml.safe_load(path.read_text())
    return found


def labels() -> dict[str, str]:
    """Return every equation label of the chapters and the chapter that defines it."""
    found = {}
    for path in sorted(BOOK.glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                found |= {label: path.stem for label, _ in equations.defined(cell.source)}
    return found


def resolve(name: str) -> object:
    """Return the object of the package called ``name``; ``LookupError`` names the part that does not exist."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
            return reduce(inspect.getattr_static, parts[length:], module)
        except ModuleNotFoundError:
            continue
        except AttributeError as error:
            raise LookupError(f"{name}: {error}") from error
    raise LookupError(f"{name}: no such module")


@cache
def numbers_of(topic: str, name: str) -> dict[str, Any]:
    """Return the numbers by which ``errata/<topic>.py`` says how large an error is."""
    numbers = getattr(importlib.import_module(f"errata.{topic}"), name)()
    return {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}


def filled(template: str, numbers: Mapping[str, Any], where: str) -> str:
    """Return the template with ``<name:format>`` replaced by the numbers, a list joined by commas.

    ``ValueError`` names the row, ``where``, if a number of the template is not there or one that is there is not used.
    """
    used = re.findall(_PLACE, template)
    if {name for name, _ in used} != set(numbers):
        missing, idle = {name for name, _ in used} - set(numbers), set(numbers) - {name for name, _ in used}
        raise ValueError(
            f"{where}: the template asks for {sorted(missing)}, which nobody computes; unused: {sorted(idle)}"
        )

    def number(match: re.Match[str]) -> str:
        value = numbers[match[1]]
        return ", ".join(format(part, match[2] or "") for part in (value if isinstance(value, list) else [value]))

    return re.sub(_PLACE, number, template)


def amount(topic: str, row: Statement) -> str:
    """Return the sentence that says how large the error of a row is."""
    return filled(row.amount, numbers_of(topic, row.size), row.id)


def verification_table() -> str:
    """Return the verification table as MyST: counts, then every statement with links to equation, source and test."""
    lines = ["| topic | statements | correct | errata | convention | missing |", "|---|--:|--:|--:|--:|--:|"]
    for topic, rows in statements().items():
        count = Counter("errata" if row.verdict in ERRATA else row.verdict for row in rows)
        shown = " | ".join(str(count[kind]) for kind in ("correct", "errata", "convention", "missing"))
        lines.append(f"| [{TITLES[topic]}]({TOPICS[topic]}.ipynb) | {len(rows)} | {shown} |")
    for topic, rows in statements().items():
        lines += [
            "",
            f"## {TITLES[topic]}",
            "",
            "| document | statement | verdict | equation, source, test |",
            "|---|---|---|---|",
        ]
        for row in rows:
            proof = [f"[](#{row.equation})"] if row.equation else []
            proof += [f"[`{row.function.split('.', 2)[-1]}`](#{row.function})"] if row.function else []
            if row.test:
                file, _, test = row.test.partition("::")
                proof.append(f'[test]({REPOSITORY}/blob/main/{file} "{test}")')
            if row.undecided:
                proof.append(f"*not decided by a test: {row.undecided}*")
            cells = (f"{row.document} {row.place}", row.says, row.verdict, "<br>".join(proof))
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def order_of_errata() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the errata that lead the page, each with what it does to code, and for an erratum those that repeat it."""
    order = yaml.safe_load((REGISTER / "errata.yaml").read_text())
    return order["lead"], order["same"]


def errata() -> str:
    """Return the errata as MyST: first those that break code, then all, each with why and its size, computed here."""
    lead, same = order_of_errata()
    rows = {row.id: (topic, row) for topic, found in statements().items() for row in found if row.verdict in ERRATA}
    repeats = {other for others in same.values() for other in others}
    lines = ["## The ten that break code", "", "| where | what the code then does |", "|---|---|"]
    for name, harm in lead.items():
        others = ", ".join(_place(rows[other][1]) for other in same.get(name, []))
        where = _place(rows[name][1]) + (f"; also {others}" if others else "")
        lines.append(f"| {_cell(where)}, see [](#{rows[name][1].equation}) | {_cell(harm)} |")
    title = ""
    for name, (topic, row) in rows.items():
        if title != TITLES[topic]:
            title = TITLES[topic]
            lines += ["", f"## {title}", ""]
        if name in repeats:
            continue
        lines += [f"**{_place(row)}** · {row.verdict}", ""]
        lines += [f": as printed: {row.printed}", ""]
        lines += [f": as it should be: {row.corrected}, see [](#{row.equation})", ""]
        lines += [f": why: {row.why}", ""]
        lines += [f": how large: {amount(topic, row) if row.size else 'no size, since no formula depends on it'}", ""]
        for other in same.get(name, []):
            again_topic, again = rows[other]
            size = f" ({amount(again_topic, again)})" if again.size and again.size != row.size else ""
            lines += [
                f": the same slip in {_place(again)}: {again.printed}, which should be {again.corrected}{size}",
                "",
            ]
    return "\n".join(lines) + "\n"


def _place(row: Statement) -> str:
    return f"{row.document} {row.place}"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", r"\|").strip()
