"""Render the executed notebooks and the pages to ``_build/html``; every warning is an error.

Works on a copy of ``book/`` in ``_build/stage``, in which the notebooks are the executed ones, equations carry MyST's
labels, figures are drawn for light and for dark pages, and generated pages are filled in. Usage: ``python book/tools/render.py`` after ``execute.py``.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import equations
import nbformat
import register
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXECUTED, STAGE, HTML = (ROOT / "_build" / name for name in ("executed", "stage", "html"))
NIGHT = "application/vnd.ddpm-nb.night"
WIDGET = "application/vnd.jupyter.widget-view+json"


def for_reading(notebook: nbformat.NotebookNode, name: str, figures: Path) -> nbformat.NotebookNode:
    """Make an executed notebook a page: MyST's own labels, figures for light and dark pages, no widgets.

    A widget needs a live kernel. Pictures are written into ``figures``; their alt text stands in the output's metadata,
    where ``plots`` put it.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = equations.myst(cell.source)
            continue
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                width = output.metadata["image/png"]["width"]
                output.data = {"text/html": picture(output.data, f"{name}-{cell.id}", width, alt, figures)}
                output.metadata = {}
    return notebook


def picture(data: dict[str, str], name: str, width: int, alt: str, figures: Path) -> str:
    """Write a figure's files and return its HTML: drawn for light and for dark, and without motion where that is asked."""
    drawings = {"": data["image/png"], "-night": data.get(NIGHT)}
    parts = []
    for kind, encoded in drawings.items():
        if encoded is None:
            continue
        file = figures / f"{name}{kind}.png"
        file.write_bytes(base64.b64decode(encoded))
        with Image.open(file) as image:
            height = round(width * image.height / image.width)
            shown = "" if NIGHT not in data else "only-dark" if kind else "only-light"
            tag = (
                f'<img class="{shown}" src="../_static/figures/{file.name}" alt="{html.escape(alt, quote=True)}" '
                f'width="{width}" height="{height}" loading="lazy">'
            )
            if getattr(image, "n_frames", 1) > 1:
                image.seek(image.n_frames - 1)
                still = f"{name}-still.png"
                image.convert("RGB").save(figures / still)
                source = f'<source media="(prefers-reduced-motion: reduce)" srcset="../_static/figures/{still}">'
                tag = f"<picture>{source}{tag}</picture>"
        parts.append(tag)
    return f'<div class="figure-of-cell">{"".join(parts)}</div>'


def status_table() -> str:
    """Return the build status as MyST: notebooks with wall time and memory, then versions and hardware."""
    record = json.loads((EXECUTED / "runs.json").read_text())
    rows = ["| notebook | wall time (s) | peak memory (MiB) |", "|---|--:|--:|"]
    rows += [f"| [{n}]({n}.ipynb) | {r['seconds']:.0f} | {r['peak_mib']:.0f} |" for n, r in record["runs"].items()]
    rows += ["", f"All of them, two at a time: {record['seconds']:.0f} s.", "", "| what | value |", "|---|---|"]
    rows += [f"| {key} | {value} |" for key, value in record["hardware"].items()]
    return "\n".join(rows) + "\n"


def conventions_table() -> str:
    """Return how other sources write three noise levels of the linear schedule, as MyST."""
    import torch

    from ddpm_nb.conventions import CONVENTIONS
    from ddpm_nb.schedule import linear_schedule

    steps = (1, 500, 1000)
    heads = " | ".join(f"$t = {t}$" for t in steps)
    rows = [f"| source | variable | our step $t$ is | {heads} | their state |", "|---|---|---|--:|--:|--:|---|"]
    for convention in CONVENTIONS.values():
        levels = linear_schedule().level(torch.tensor(steps))
        values = " | ".join(f"{value:.6g}" for value in convention.variable(levels).tolist())
        same = bool((convention.scale(levels) == 1).all())
        state = "$x_t$" if same else r"$x_t/\sqrt{\bar\alpha_t}$"
        rows.append(f"| {convention.source} | {convention.symbol} | {convention.index} | {values} | {state} |")
    return "\n".join(rows) + "\n"


def _with_error(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"


def data_of(card: dict[str, Any]) -> str:
    """Return what the card of a model says of its data: checksums, and to whom the pictures are owed."""
    if packed := card.get("packed"):
        side = card["event"][1]
        return (
            f"{packed['attribution']}, as `ddpm-nb pack {packed['source']} --side {side}` draws them: SHA-256 of pixels "
            f"and labels `{packed['sha256']}`"
        )
    images = [f"{name}: `{md5}`" for name, md5 in card["md5"].items() if "images" in name]
    return ", ".join(images) or "comes with scikit-learn"


def models() -> str:
    """Return the cards of the shipped models as MyST: how each was made, and how good it is."""
    from ddpm_nb import pretrained

    pages = []
    for path in sorted((Path(pretrained.__file__).parent / "weights").glob("*.json")):
        card = json.loads(path.read_text())
        bound = card["bits_per_dim"]
        facts = {
            "file": f"`ddpm_nb/weights/{path.stem}.safetensors`, {card['bytes'] / 1e6:.1f} MB, weights as float16",
            "SHA-256": f"`{card['sha256']}`",
            "command": f"`{card['command']}`",
            "data": data_of(card),
            "wall time": f"{card['minutes']:.0f} min",
            "hardware": card["trained_on"],
            "size": f"{card['parameters']:,} parameters, {card['flops'] / 1e6:.0f} million operations an image",
            "bound": f"{bound['mean']:.3f} bits/dim on all {bound['images']} test images, of {card['recipe']['T']} "
            f"steps; standard error {bound['error_of_estimate']:.3f} of the estimate ({bound['draws']} draws of step "
            f"and noise), {bound['error_over_images']:.3f} over images",
            "classifier behind the features": f"{card['accuracy']:.1%} of the test set right",
        }
        rows = [f"## {path.stem}", "", "| what | value |", "|---|---|"]
        rows += [f"| {name} | {value} |" for name, value in facts.items()]
        rows += [
            "",
            f"{card['count']} images of each of {card['real']['frechet']['runs']} seeds, mean ± standard error:",
        ]
        rows += [
            "",
            "| images | Fréchet distance | precision | recall | density | coverage | nearer to a training image |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        sets = {f"model, DDIM in {steps} steps": row for steps, row in card["samples"].items()}
        for name, row in {**sets, "real training images": card["real"], **card["decoys"]}.items():
            rows.append(f"| {name} | " + " | ".join(_with_error(row[key], 3) for key in row) + " |")
        apart = card["told_apart"]
        shares = (f"{apart[kind][0]:.1%} ± {apart[kind][1]:.1%}" for kind in ("model", "real"))
        rows += [
            "",
            "Told apart from real training images: {} for the model's samples in 50 steps, rounded to the levels of the data, {} for test images; ".format(
                *shares
            )
            + f"{apart['images']} samples; the error is that of a share of independent images.",
        ]
        rows += [
            "",
            f"![Samples of the {path.stem} model, in rows of sixteen](images/{path.stem}.png)",
        ]
        pages.append("\n".join(rows))
    return "\n\n".join(pages) + "\n"


def commands() -> str:
    """Return the help of every command as MyST."""
    from ddpm_nb.commands import options

    parsers = options().commands.items()
    return "\n\n".join(f"## `ddpm-nb {name}`\n\n```text\n{p.format_help().strip()}\n```" for name, p in parsers) + "\n"


def citation() -> str:
    """Return ``CITATION.cff`` as a BibTeX entry, in MyST."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    fields = {
        "title": cff["title"],
        "author": "{" + " and ".join(author["name"] for author in cff["authors"]) + "}",
        "year": cff["date-released"][:4],
        "version": cff["version"],
        "url": cff["repository-code"],
    }
    lines = [f"  {name:8}= {{{value}}}," for name, value in fields.items()]
    return "\n".join(["```bibtex", "@software{ddpm_nb,", *lines, "}", "```", ""])


def stage() -> None:
    """Lay out the source tree that Jupyter Book reads."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=shutil.ignore_patterns("checkpoints", "__pycache__", ".*"))
    figures = STAGE / "book" / "static" / "figures"
    figures.mkdir()
    for path in sorted((STAGE / "book").glob("*.ipynb")):
        executed = EXECUTED / path.name
        if not executed.is_file():
            raise SystemExit(f"{executed} is missing: run book/tools/execute.py first")
        nbformat.write(for_reading(nbformat.read(executed, 4), path.stem, figures), path)
    generated = STAGE / "book" / "_generated"
    generated.mkdir(exist_ok=True)
    pages = {
        "status": status_table(),
        "conventions": conventions_table(),
        "verification": register.verification_table(),
        "errata": register.errata(),
        "models": models(),
        "commands": commands(),
        "citation": citation(),
    }
    for name, text in pages.items():
        (generated / f"{name}.md").write_text(text)
    shutil.copy(ROOT / "_toc.yml", STAGE)
    config, replaced = re.subn(
        r"execute_notebooks: \w+", 'execute_notebooks: "off"', (ROOT / "_config.yml").read_text()
    )
    if replaced != 1:
        raise SystemExit("_config.yml: expected one line execute_notebooks")
    (STAGE / "_config.yml").write_text(config)


def main() -> int:
    """Stage and build; the exit status is Jupyter Book's."""
    stage()
    shutil.rmtree(HTML, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", ROOT, "-W", "-n", "--keep-going", "--all", "--quiet"]
    done = subprocess.run([jupyter_book, "build", STAGE, *options], cwd=ROOT)
    page = HTML / "index.html"
    if done.returncode == 0 and not page.is_file():
        print(f"no page was written to {page}")
        return 1
    if done.returncode == 0:
        print(f"\nThe book is built. Open {page.as_uri()}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
