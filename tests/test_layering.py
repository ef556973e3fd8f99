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
    {"belief"},
    {"exact"},
    {"bound"},
    {"weighting"},
    {"kernels"},  # what chapters 5 and 7 walk
    {"sde", "training", "sampling", "variance"},  # siblings do not import each other
    {"pretrained", "solvers"},
    {
        "inverse",
        "likelihood",
        "convergence",
        "recipe",
        "latents",
        "measured",
        "evaluation",
        "quality",
        "export",
        "packing",
    },
    {"guidance"},  # uses what bends a walk, of inverse
    {"commands"},
    {"__main__"},  # the thin end of the commands
    {"book"},  # exercises, figures and notebooks may use every layer, and nothing uses them
]
FOUNDATIONS = {"arguments", "registry", "precision", "aside"}  # used by all, each by the later ones only
LEAVES = {
    "conventions",
    "nets",
    "data",
    "checkpoint",
    "hardware",
    "metrics",
    "optimizers",
    "pictures",
}  # beside the order, used from above
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def place(file: Path) -> str:
    """The module, or the folder of modules, that a file of the package belongs to."""
    return file.parts[0].removesuffix(".py")


def imports(source: str, folder: str = "ddpm_nb") -> set[str]:
    """What a source in ``folder`` imports of the package, wherever in it: names of modules or folders of modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = folder.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (home, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ddpm_nb.")}
    return found


def breaches(name: str, source: str, folder: str = "ddpm_nb") -> set[str]:
    """Imports of module ``name`` that its place in the order does not allow."""
    allowed = {"arguments": set(), "aside": set(), "registry": {"arguments"}, "precision": {"arguments"}}.get(
        name, FOUNDATIONS
    )
    if name == "conventions":
        allowed = allowed | {"schedule"}
    if name in LEVEL:
        allowed = allowed | LEAVES | {other for other, level in LEVEL.items() if level < LEVEL[name]}
    return imports(source, folder) - allowed - {name}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_modules_import_only_upward(file):
    folder = ".".join(("ddpm_nb", *file.parts[:-1]))
    assert breaches(place(file), (PACKAGE / file).read_text("utf-8"), folder) == set()


def test_every_module_has_a_place():
    places = {place(file) for file in FILES} - {"__init__"}
    assert places <= set(LEVEL) | LEAVES | FOUNDATIONS
    assert {"gaussian", "schedule", "diffusion", "denoiser", "exact", "bound", "training", "sampling"} <= places


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
        ("book", "import ddpm_nb\nfrom ddpm_nb import __version__\nfrom ddpm_nb.arguments import nearest", set()),
        ("recipe", "from ddpm_nb.book.plots import show", {"book"}),
        ("registry", "from ddpm_nb.schedule import SCHEDULES", {"schedule"}),
    ],
)
def test_a_breach_is_seen_in_every_form_of_import(name, line, breach):
    assert breaches(name, line) == breach


def test_a_folder_of_modules_is_one_module():
    source = "from .compare import near\nfrom ...gaussian import Gaussian\nfrom ddpm_nb.book.exercises import chapter_1"
    assert imports(source, "ddpm_nb.book.exercises") == {"book", "gaussian"}
    assert breaches("book", source, "ddpm_nb.book.exercises") == set()
    assert breaches("bound", "from ddpm_nb.book.exercises.compare import near") == {"book"}
