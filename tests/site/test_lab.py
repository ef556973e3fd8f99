"""A chapter in a real JupyterLab: equations show their numbers, and links to them move the page. Needs Chromium."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_browser import CHROMIUM, ROOT, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on copies of two chapters."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("01-gaussians", "02-forward"):
        shutil.copy(ROOT / "book" / f"{name}.ipynb", folder)
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
        page.goto(f"{lab}/lab/tree/01-gaussians.ipynb?token=reader")
        link = page.locator('.jp-RenderedMarkdown a[href^="#eq-"]').last
        link.wait_for(timeout=60_000)
        page.wait_for_timeout(4000)  # Lab sets the formulas one by one
        label = str(link.get_attribute("href"))[1:]
        anchor = page.locator(f'[data-jupyter-id="{label}"], [id="{label}"]')
        link.scroll_into_view_if_needed()
        before = anchor.evaluate("e => e.getBoundingClientRect().top")
        link.click()
        page.wait_for_timeout(2000)
        after = anchor.evaluate("e => e.getBoundingClientRect().top")
        assert abs(before - after) > 100, "the page did not move"
        assert 0 <= after < 900, "the equation is not in view"
        text = page.locator(".jp-RenderedMarkdown").all_inner_texts()
        assert not [line for line in text if "(eq-" in line or "\\tag" in line]
