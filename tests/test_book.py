"""The committed notebooks and pages: their form, and what papermill makes of them."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "tools"))
import equations  # noqa: E402
import sections  # noqa: E402
import symbols  # noqa: E402
from outputs import normalised  # noqa: E402

PATHS = sorted(BOOK.glob("*.ipynb"))
NOTEBOOKS = {path.stem: nbformat.read(path, 4) for path in PATHS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(name: str, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_the_chapters_are_there_and_in_the_contents() -> None:
    chapters = (
        "00-first-look 01-gaussians 02-forward 03-posterior 04-elbo-to-mse 05-sde 06-training 07-sampling "
        "08-inverse-problems 09-guidance"
    )
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert list(NOTEBOOKS) == chapters.split()
    assert [f"book/{name}" for name in NOTEBOOKS] == [page for page in listed if Path(page).name in NOTEBOOKS]


@each_notebook
def test_notebook_is_in_normal_form(name: str) -> None:
    assert NOTEBOOKS[name] == normalised(NOTEBOOKS[name]), "run `make outputs`"


@each_notebook
def test_every_code_cell_was_run_and_kept_its_output(name: str) -> None:
    """nbval compares nothing in a cell without a count, and a figure without its text output was never run."""
    code = cells(name, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        if re.search(r"^plots\.show\(", cell.source, re.MULTILINE):
            assert cell.outputs, cell.source


@each_notebook
def test_set_up_cell_is_the_same_everywhere_and_names_the_repository(name: str) -> None:
    first = cells(name, "code")[0]
    assert first.source == cells("01-gaussians", "code")[0].source
    assert tags(first) == ["hide-cell"]
    assert f'"git+{PROJECT["urls"]["Repository"]}@main"' in first.source


def test_the_repository_has_one_address() -> None:
    address = PROJECT["urls"]["Repository"]
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"] == address
    for page in [ROOT / "README.md", *BOOK.glob("*.md")]:
        for other in re.findall(r"https://github\.com/[\w-]+/ddpm[\w-]*", page.read_text()):
            assert other == address, page.name


@each_notebook
def test_parameters_are_one_typed_commented_cell_checked_before_anything_else(name: str) -> None:
    code = cells(name, "code")
    marked = [i for i, cell in enumerate(code) if "parameters" in tags(cell)]
    assert len(marked) == 1
    source = code[marked[0]].source
    for node, line in zip(ast.parse(source).body, source.splitlines(), strict=True):
        assert isinstance(node, ast.AnnAssign), line
        assert isinstance(node.value, ast.Constant | ast.UnaryOp), line
        assert "  # " in line, line
    assert re.match(r"check_parameters\(\s*globals\(\)", code[marked[0] + 1].source)
    assert marked[0] <= 2, "only set-up and imports come before the parameters"


@each_notebook
def test_logic_lives_in_the_package(name: str) -> None:
    for cell in cells(name, "code"):
        tree = ast.parse(cell.source)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)], cell.source
        assert "torch.manual_seed" not in cell.source or "fork_rng" in cell.source, "seed a generator instead"
        assert "plt.show" not in cell.source
    assert any("show_source(" in cell.source for cell in cells(name, "code"))
    assert any(re.search(r"^assert ", cell.source, re.MULTILINE) for cell in cells(name, "code"))


@each_notebook
def test_a_figure_ends_its_cell_and_there_are_at_least_two(name: str) -> None:
    figures = [cell for cell in cells(name, "code") if "plots.show(" in cell.source]
    assert len(figures) >= 2
    for cell in figures:
        last = ast.parse(cell.source).body[-1]
        assert isinstance(last, ast.Expr)
        assert ast.unparse(last).startswith("plots.show("), "the figure is the last line of its cell"
        assert cell.source.count("plots.show(") == 1


@each_notebook
def test_prose_reads_everywhere(name: str) -> None:
    """No directive or role (raw text outside the HTML), no link to a label that no chapter defines."""
    labels = {
        label
        for notebook in NOTEBOOKS
        for cell in cells(notebook, "markdown")
        for label, _ in equations.defined(cell.source)
    }
    for cell in cells(name, "markdown"):
        assert not re.search(r"\{(?:eq|ref|numref|prf:ref|cite:?\w*|term|py:\w+)\}`|^:::|^```\{", cell.source, re.M)
        for link in equations.LINK.finditer(cell.source):
            assert link["label"] in labels, f"{link['label']} is not defined"
    assert NOTEBOOKS[name].cells[0].source.startswith("# ")
    assert any(cell.source.startswith("## What we learned") for cell in cells(name, "markdown"))


@each_notebook
def test_equations_carry_the_numbers_and_anchors_that_every_reader_understands(name: str) -> None:
    where = equations.numbers(NOTEBOOKS)
    for cell in cells(name, "markdown"):
        assert cell.source == equations.portable(cell.source, name, where), "run `make outputs`"
        assert not re.search(r"\$\$ \(eq-|\]\(#ddpm", cell.source)


def test_a_cell_survives_the_way_to_the_page_and_back() -> None:
    written = "By [the sum rule](#eq-b),\n\n$$\na = b\n$$ (eq-a)\n\nand [](#eq-c), see [`f`](#ddpm_nb.f)."
    where = {"eq-a": ("02-x", "2.1"), "eq-b": ("02-x", "2.3"), "eq-c": ("01-y", "1.7")}
    committed = equations.portable(written, "02-x", where)
    assert committed == (
        'By [the sum rule (2.3)](#eq-b),\n\n<a id="eq-a"></a>\n\n$$\na = b\n\\tag{2.1}\n$$\n\n'
        "and [(1.7)](01-y.ipynb#eq-c), see [`f`](api.md#ddpm_nb.f)."
    )
    assert equations.portable(committed, "02-x", where) == committed
    assert equations.myst(committed) == written
    moved = equations.portable(committed, "02-x", where | {"eq-a": ("02-x", "2.2"), "eq-b": ("02-x", "2.9")})
    assert "\\tag{2.2}" in moved and "rule (2.9)]" in moved


def test_the_core_leans_on_no_aside() -> None:
    assert sections.leans_on_asides(NOTEBOOKS) == []


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if not name.startswith("00")])
def test_a_chapter_has_asides_and_its_core_is_shorter(name: str) -> None:
    amounts = sections.amounts(NOTEBOOKS[name])
    assert amounts[True]["words"] > 0.2 * amounts[False]["words"]


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if not name.startswith("00")])
def test_every_symbol_of_a_chapter_has_one_registered_meaning(name: str) -> None:
    register = symbols.registered(name)
    assert symbols.unregistered(BOOK / f"{name}.ipynb", register) == {}
    forms = symbols.used(BOOK / f"{name}.ipynb")
    assert set(register) <= set(forms) | set().union(*forms.values())


@each_notebook
def test_nothing_is_wider_than_eighty_columns(name: str) -> None:
    wide = []
    for cell in cells(name, "code"):
        wide += [line for line in cell.source.splitlines() if len(line) > 80]
        for output in cell.outputs:
            shown = output.get("text") or output.get("data", {}).get("text/markdown", "")
            wide += [line for line in shown.splitlines() if len(line) > 80 and "$" not in line and "|" not in line]
    assert wide == []


@each_notebook
def test_code_that_only_draws_is_folded(name: str) -> None:
    for cell in cells(name, "code"):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert folded == bool({"hide-input", "hide-cell"} & set(tags(cell)))
        if folded and "hide-cell" not in tags(cell):
            assert not re.search(r"^assert ", cell.source, re.M), "a check that no reader sees"


def test_docstrings_refer_to_equations_that_exist() -> None:
    defined = equations.numbers(NOTEBOOKS)
    for module in sorted((ROOT / "ddpm_nb").rglob("*.py")):
        for label in re.findall(r"\(#(eq-[a-z0-9-]+)\)", module.read_text()):
            assert label in defined, f"{module.name} refers to {label}"


def test_configuration_keeps_the_settings_that_make_a_build_mean_something() -> None:
    """Jupyter Book ignores unknown keys in silence, so a slip of spelling would switch a check off."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["only_build_toc_files"] is True
    assert ".*" in config["exclude_patterns"]
    assert config["execute"]["allow_errors"] is False
    assert config["sphinx"]["config"]["nb_execution_raise_on_error"] is True
    assert "sphinx-mathjax-offline" in config["sphinx"]["extra_extensions"]


def run(name: str, folder: Path, **parameters: object) -> nbformat.NotebookNode:
    out = folder / f"{name}.ipynb"
    return papermill.execute_notebook(
        str(BOOK / f"{name}.ipynb"),
        str(out),
        parameters=parameters,
        cwd=str(folder),
        kernel_name="python3",
        progress_bar=False,
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stpes": 5}, r"unknown parameter 'stpes' \(did you mean 'steps'\?\)"),
        ({"steps": -3}, r"steps = -3: expected a number of at least 1"),
        ({"steps": "many"}, r"steps = 'many': expected int, got str"),
        ({"dataset": "fashion"}, r"dataset = 'fashion': expected one of .*did you mean 'fashion_mnist'"),
    ],
)
def test_papermill_stops_before_any_work(parameters: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(papermill.PapermillExecutionError, match=message) as caught:
        run("06-training", tmp_path, **parameters)
    assert "check_parameters" in caught.value.source
    assert not (tmp_path / "checkpoints").exists()


REAL = Path(os.environ.get("DDPM_NB_TEST_DATA", ROOT.parent / "shared" / "data" / "fashion-mnist"))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the four Fashion-MNIST files: set DDPM_NB_TEST_DATA")
def test_train_on_fashion_mnist_and_sample_from_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_NB_DATA", str(REAL))
    run("06-training", tmp_path, dataset="fashion_mnist", steps=3, batch_size=8)
    small = {"samples": 100, "ddim_steps": 2, "ancestral_steps": 2, "epochs": 1, "classifier_images": 500}
    small |= {"compared": 20, "fitted": 300, "scored": 4}
    sampled = run("07-sampling", tmp_path, dataset="fashion_mnist", **small)
    text = "".join(o.get("text", "") for cell in sampled.cells for o in cell.get("outputs", []))
    assert "fashion_mnist, 3 training steps" in text
