"""Every statement of the documents has an equation, a function and a test, and all of them exist."""

from __future__ import annotations

import ast
import math
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import register  # noqa: E402

ROWS = [row for rows in register.statements().values() for row in rows]
COUNTS = {
    "gaussians": 18, "forward": 89, "posterior": 54, "vae": 27, "elbo": 43, "parameterizations": 69,
    "sde": 30, "training": 22, "sampling": 31, "inverse": 5,
}  # fmt: skip


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("topic", register.statements())
def test_every_statement_of_a_topic_is_registered(topic: str) -> None:
    assert len(register.statements()[topic]) == COUNTS[topic]


def test_identifiers_are_unique() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("topic", register.statements())
def test_every_statement_has_an_equation_a_function_and_a_test_that_exist(topic: str) -> None:
    labels, problems = register.labels(), []
    for row in register.statements()[topic]:
        if row.document not in register.DOCUMENTS or row.verdict not in register.VERDICTS or not row.says:
            problems.append(f"{row.id}: document, verdict or wording")
        if row.equation not in labels:
            problems.append(f"{row.id}: no equation {row.equation!r}")
        if row.undecided:
            continue
        try:
            register.resolve(row.function)
        except (LookupError, ValueError) as error:
            problems.append(f"{row.id}: {error}")
        file, _, test = row.test.partition("::")
        if not (ROOT / file).is_file() or test not in names_in(file):
            problems.append(f"{row.id}: no test {row.test!r}")
    assert problems == []


@pytest.mark.parametrize("topic", register.statements())
def test_every_erratum_says_what_why_and_how_large(topic: str) -> None:
    for row in register.statements()[topic]:
        if row.verdict in register.ERRATA:
            assert row.printed and row.corrected and row.why, row.id
            if not row.size:
                assert row.undecided or "heading" in row.place, f"{row.id}: only an editorial slip has no size"
                continue
            numbers = register.numbers_of(topic, row.size)
            flat = [part for value in numbers.values() for part in (value if isinstance(value, list) else [value])]
            assert flat and all(math.isfinite(number) for number in flat), row.id
            sentence = register.amount(topic, row)
            assert "<" not in sentence.replace("$<$", ""), f"{row.id}: {sentence!r}"
            assert any(character.isdigit() for character in sentence), f"{row.id}: {sentence!r} names no number"


def test_the_page_of_errata_leads_with_ten_and_loses_none() -> None:
    lead, same = register.order_of_errata()
    errata = {row.id: row for row in ROWS if row.verdict in register.ERRATA}
    repeats = [other for others in same.values() for other in others]
    assert len(lead) == 10
    assert len(repeats) == len(set(repeats)), "an erratum repeats one other"
    assert set(lead) | set(same) | set(repeats) <= set(errata)
    page = register.errata()
    for row in errata.values():
        assert row.printed.strip()[:20] in page, row.id
    assert not [row.id for row in errata.values() if "missing" in row.printed], "a verdict on a formula nobody saw"


def test_a_template_and_its_numbers_must_be_about_the_same_things() -> None:
    numbers = {"factor": 2.345, "steps": [2, 3]}
    assert register.filled("off by $\\frac{<factor:.1f>}{2}$ at <steps>", numbers, "R-1") == (
        "off by $\\frac{2.3}{2}$ at 2, 3"
    )
    with pytest.raises(ValueError, match=r"R-1: the template asks for \['facter'\].* unused: \['factor'\]"):
        register.filled("off by <facter:.1f> at <steps>", numbers, "R-1")
    with pytest.raises(ValueError, match=r"R-1: .*unused: \['steps'\]"):
        register.filled("off by <factor:.1f>", numbers, "R-1")


@pytest.mark.parametrize("chapter", sorted({register.TOPICS[topic] for topic in register.statements()}))
def test_every_equation_of_a_chapter_is_claimed(chapter: str) -> None:
    defined = {label for label, where in register.labels().items() if where == chapter}
    claimed = {row.equation for row in ROWS} | set(register.derivations())
    assert sorted(defined - claimed) == [], "neither a statement nor a derivation"


def test_every_derivation_is_in_the_book() -> None:
    assert sorted(set(register.derivations()) - set(register.labels())) == []
