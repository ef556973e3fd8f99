"""The symbols of each chapter's formulas, held against its register ``book/register/symbols/NN-name.yaml``.

A register maps each symbol, as ``letters`` prints it, to its one meaning in that chapter. A subscripted entry such as
``v_k`` has a meaning of its own; the bare letter stands for every other use.
Usage: ``python book/tools/symbols.py [NAME ...]`` prints what is unregistered and what is registered but unused.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import nbformat
import yaml

BOOK = Path(__file__).resolve().parents[1]
REGISTER = BOOK / "register" / "symbols"
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+)\$", re.DOTALL)
WORDS = re.compile(
    r"\\begin\{array\}\{[lcr]+\}|\\(?:text|textbf|textrm|mathrm|operatorname\*?|begin|end|tag|label|quad|qquad)\s*\{[^{}]*\}"
)
GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|"
    "varsigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|varrho"
)
ACCENTS = "hat|bar|tilde|vec|dot|widehat|widetilde|overline|boldsymbol|mathbf|mathcal|mathbb|mathsf"
LETTER = rf"\\(?:{GREEK})(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z]"
SYMBOL = re.compile(
    rf"(?:\\(?P<accent>{ACCENTS})\s*\{{?\s*(?P<under>{LETTER})\s*\}}?|(?P<plain>{LETTER}))"
    r"(?:_(?:\{(?P<braced>[^{}]*)\}|(?P<bare>\\[A-Za-z]+|[A-Za-z0-9])))?"
)


def letters(formula: str) -> Counter[tuple[str, str]]:
    """Return the symbols of one formula as ``(letter with its accent, the same with its subscript)``."""
    formula = WORDS.sub(" ", formula).replace(r"\,", " ")
    found: Counter[tuple[str, str]] = Counter()
    for match in SYMBOL.finditer(_spaced(formula)):
        letter = (match["under"] or match["plain"]).lstrip("\\")
        base = f"{match['accent']} {letter}" if match["accent"] else letter
        below = match["braced"] or match["bare"] or ""
        found[base, f"{base}_{below}" if below else base] += 1
    return found


def _spaced(formula: str) -> str:
    """Put spaces between letters that TeX multiplies, so that ``ax`` is two symbols and ``\\alpha`` stays one."""
    return re.sub(r"\\[A-Za-z]+|[A-Za-z]", lambda m: m[0] if m[0].startswith("\\") else f" {m[0]}", formula).replace(
        "_ ", "_"
    )


def used(path: Path) -> dict[str, set[str]]:
    """Return the symbols of a notebook: each letter with the subscripted forms in which it occurs."""
    found: dict[str, set[str]] = {}
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            for match in FORMULA.finditer(re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)):
                for base, full in letters(match[1] or match[2]):
                    found.setdefault(base, set()).add(full)
    return found


def registered(name: str) -> dict[str, str]:
    """Return the register of a chapter. Raises ``ValueError`` for a symbol that it lists twice."""
    text = (REGISTER / f"{name}.yaml").read_text()
    found = yaml.safe_load(text)
    entries = re.findall(r"^[^#\s].*?:", text, re.MULTILINE)
    if len(entries) != len(found):
        raise ValueError(f"{name}: a symbol has two entries")
    return found


def unregistered(path: Path, register: dict[str, str]) -> dict[str, set[str]]:
    """Return the letters of a notebook that no entry covers, with the forms that are not covered."""
    missing = {}
    for base, forms in used(path).items():
        if base not in register and (rest := {form for form in forms if form not in register}):
            missing[base] = rest
    return missing


def main() -> int:
    """Report on the named chapters, or on all; exit status 1 if a symbol is unregistered or an entry unused."""
    wrong = False
    for path in sorted(BOOK.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        register = registered(path.stem) if (REGISTER / f"{path.stem}.yaml").is_file() else {}
        forms = set().union(*used(path).values(), used(path))
        for base, rest in sorted(unregistered(path, register).items()):
            print(f"{path.stem}: {base} is not registered; it occurs as {', '.join(sorted(rest))}")
            wrong = True
        for entry in register:
            if entry not in forms:
                print(f"{path.stem}: the entry {entry!r} is not used")
                wrong = True
    return wrong


if __name__ == "__main__":
    sys.exit(main())
