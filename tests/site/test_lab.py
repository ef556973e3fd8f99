"""A chapter in a real JupyterLab: equations show their numbers, and links to them move the page. Needs Chromium."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from test_browser import CHROMIUM, ROOT, browser

sys.path.insert(0, str(ROOT / "book" / "tools"))
import equations

LABEL = "eq-gaussian-product"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a notebook of three real cells: a link to an equation, a long way, and the equation."""
    folder = tmp_path_factory.mktemp("lab")
    chapter = nbformat.read(ROOT / "book" / "01-gaussians.ipynb", 4)
    prose = [cell.source for cell in equations.prose(chapter)]
    (there,) = (source for source in prose if f'id="{LABEL}"' in source)
    here = next(source for source in prose if f"(#{LABEL})" in source and source != there)
    short = nbformat.v4.new_notebook(metadata=chapter.metadata)
    cells = [here, *["a long way\n\n" * 40] * 2, there]
    short.cells = [nbformat.v4.new_markdown_cell(source) for source in cells]
    nbformat.write(short, folder / "short.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --port-retries=0 --IdentityProvider.token=reader"
    program = [str(Path(sys.executable).with_name("jupyter-lab")), *options.split(), f"--ServerApp.root_dir={folder}"]
    server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token=reader", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_link_to_an_equation_moves_the_page(lab: str) -> None:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        page.goto(f"{lab}/lab/tree/short.ipynb?token=reader")
        link = page.locator(f'.jp-RenderedMarkdown a[href="#{LABEL}"]').first
        link.wait_for(timeout=60_000)
        page.wait_for_timeout(4000)  # Lab sets the formulas one by one
        anchor = page.locator(f'[data-jupyter-id="{LABEL}"], [id="{LABEL}"]')
        link.scroll_into_view_if_needed()
        before = anchor.evaluate("e => e.getBoundingClientRect().top")
        link.click()
        page.wait_for_timeout(2000)
        after = anchor.evaluate("e => e.getBoundingClientRect().top")
        assert abs(before - after) > 100, "the page did not move"
        assert 0 <= after < 900, "the equation is not in view"
        text = "".join(page.locator(".jp-RenderedMarkdown").all_inner_texts())
        assert "(eq-" not in text and "\\tag" not in text
        assert re.search(r"\(1\.\d+\)", text), "no equation shows its number"
