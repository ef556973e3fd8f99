"""The modules of the package import each other only upward in one order, which is also the order of the book."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddpm_nb"
ORDER = [
    {"gaussian"},
    {"schedule"},
    {"diffusion"},
    {"denoiser"},
    {"exact"},
    {"bound"},
    {"sde", "training", "sampling", "pretrained"},  # siblings do not import each other
    {"inverse"},
    {"exercises"},  # checks of readers' answers may use every layer
]
LEAVES = {"nets", "data", "checkpoint", "metrics", "plots", "notebook"}
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(source: str) -> set[str]:
    """Modules of the package that a source imports, wherever in it; relative imports count as of the package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ddpm_nb.")}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"ddpm_nb.{module}".rstrip(".")
            if module == "ddpm_nb":
                found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
            elif module.startswith("ddpm_nb."):
                found.add(module.split(".")[1])
    return found


def breaches(name: str, source: str) -> set[str]:
    """Imports of module ``name`` that its place in the order does not allow."""
    allowed = {"arguments"} if name != "arguments" else set()
    if name in LEVEL:
        allowed |= LEAVES | {other for other, level in LEVEL.items() if level < LEVEL[name]}
    return imports(source) - allowed


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_upward(name):
    assert breaches(name, (PACKAGE / f"{name}.py").read_text("utf-8")) == set()


def test_every_module_has_a_place():
    assert set(MODULES) <= set(LEVEL) | LEAVES | {"arguments"}
    assert {"gaussian", "schedule", "diffusion", "denoiser", "exact", "bound", "training", "sampling"} <= set(MODULES)


def test_importing_the_package_imports_no_layer():
    assert imports((PACKAGE / "__init__.py").read_text("utf-8")) == set()


@pytest.mark.parametrize(
    ("name", "line", "breach"),
    [
        ("gaussian", "from ddpm_nb.schedule import Time", {"schedule"}),
        ("sampling", "from ddpm_nb.training import Ema", {"training"}),
        ("exact", "import ddpm_nb.bound", {"bound"}),
        ("exact", "def f():\n    from ddpm_nb import bound", {"bound"}),
        ("exact", "from .bound import ledger", {"bound"}),
        ("exact", "from . import bound, gaussian", {"bound"}),
        ("nets", "from ddpm_nb.schedule import Time", {"schedule"}),
        ("nets", "from ddpm_nb.data import load_dataset", {"data"}),
        ("arguments", "from ddpm_nb.nets import UNet", {"nets"}),
        ("bound", "from ddpm_nb.exact import GaussianMixture\nfrom ddpm_nb.nets import UNet", set()),
        ("notebook", "import ddpm_nb\nfrom ddpm_nb import __version__\nfrom ddpm_nb.arguments import nearest", set()),
    ],
)
def test_a_breach_is_seen_in_every_form_of_import(name, line, breach):
    assert breaches(name, line) == breach
