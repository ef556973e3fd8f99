"""Every plant of ``mutations.py`` still finds its passage and its tests, so that none is lost unseen."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from mutations import PLANTS, Plant

ROOT = Path(__file__).resolve().parents[1]


@cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_plant_finds_its_passage_and_its_tests(plant: Plant) -> None:
    source = (ROOT / "ddpm_nb" / f"{plant.module}.py").read_text("utf-8")
    assert source.count(plant.source) == 1, (
        f"{plant.source!r} stands {source.count(plant.source)} times in {plant.module}"
    )
    assert plant.bug != plant.source
    compile(source.replace(plant.source, plant.bug), plant.module, "exec")
    for test in plant.tests:
        file, _, name = test.partition("::")
        assert name in functions_in(file), f"no test {test}"


def test_no_two_plants_are_one() -> None:
    assert len({plant.name for plant in PLANTS}) == len({(plant.module, plant.bug) for plant in PLANTS}) == len(PLANTS)
