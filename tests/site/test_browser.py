"""The built pages in a real browser: nothing cut off, accessible, quiet, and usable without motion. Needs Chromium.

Run as a program, it prints the counts of every page: ``python tests/site/test_browser.py``.
"""

from __future__ import annotations

import functools
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
LAPTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

CUT_OFF = """() => {
  const found = [], page = document.documentElement, article = document.querySelector("article");
  const words = (e) => (e.id || e.innerText || "").trim().slice(0, 60).replace(/\\s+/g, " ");
  const name = (e) => `${e.tagName.toLowerCase()} ${words(e)}`;
  const right = article.getBoundingClientRect().right + 1;
  if (page.scrollWidth > page.clientWidth + 1) found.push(`page ${page.scrollWidth} > ${page.clientWidth}`);
  for (const e of article.querySelectorAll("pre, table, img, dt.sig, .cell_output, svg"))
    if (e.getClientRects().length && !e.closest("mjx-container")
        && (e.scrollWidth > e.clientWidth + 1 && e.clientWidth || e.getBoundingClientRect().right > right))
      found.push(name(e));
  for (const e of article.querySelectorAll("mjx-container")) {
    if (!e.getClientRects().length) continue;
    const box = e.closest("div.math") || e, number = box.querySelector(".eqno"), drawn = e.querySelector("mjx-math");
    const end = box.getBoundingClientRect().right - (number ? number.getBoundingClientRect().width : 0);
    const scrolls = e.classList.contains("scrolls") && e.tabIndex === 0;
    if (e.getBoundingClientRect().right > right || (drawn.getBoundingClientRect().right > end + 2 && !scrolls))
      found.push(`formula ${name(box)}`);
  }
  return found;
}"""
ALL_BUT_GLYPHS = {"exclude": [["mjx-container > *"], ["pre > *"]]}  # thousands of boxes: one test looks at code
SCROLLING = "document.querySelectorAll('article mjx-container.scrolls').length"


@contextmanager
def served() -> Iterator[str]:
    """Serve the book on a free port of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield launched
        finally:
            launched.close()


def settled(page: Page) -> None:
    """Wait until the formulas are set and marked."""
    page.evaluate("window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
    page.wait_for_timeout(300)


def opened(chromium: Browser, address: str, **options: Any) -> tuple[Page, list[str]]:
    """Open a page that may load from this machine only; return it and what its console says."""
    page = chromium.new_context(viewport=LAPTOP, **options).new_page()
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on(
        "request",
        lambda r: said.append(f"asks for {r.url}") if "127.0.0.1" not in r.url[:30] and r.url[:5] != "data:" else None,
    )
    page.goto(address)
    settled(page)
    return page, said


def violations(page: Page, *only: str) -> list[str]:
    """Return what axe-core finds, by the rules of WCAG 2.1 AA or only by those named."""
    rules = list(only) or ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = (
        Axe()
        .run(page, options={"runOnly": rules, "resultTypes": ["violations"], "preload": False})
        .response["violations"]
    )
    return [f"{v['id']}: {node['html'][:120]}" for v in found for node in v["nodes"]]


def in_theme(page: Page, theme: str) -> None:
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    page.wait_for_timeout(100)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    assert HTML.is_dir(), "no built book: run `make book`"
    with served() as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_off_and_all_is_accessible(site: str, chromium: Browser, name: str) -> None:
    page, said = opened(chromium, f"{site}/{name}.html")
    problems = {"1300 px": page.evaluate(CUT_OFF), "console": said}
    assert page.evaluate(SCROLLING) == 0, "a formula scrolls on a laptop"
    problems["axe"] = violations(page)
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(400)
    problems["390 px"] = page.evaluate(CUT_OFF)
    problems["axe, phone"] = violations(page, "scrollable-region-focusable")
    page.context.close()
    assert {where: found for where, found in problems.items() if found} == {}


@pytest.mark.parametrize("name", ["book/intro", "book/00-first-look", "book/verification", "book/models"])
def test_dark_pages_have_contrast(site: str, chromium: Browser, name: str) -> None:
    page, _ = opened(chromium, f"{site}/{name}.html")
    in_theme(page, "dark")
    assert violations(page, "color-contrast") == []
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_code_has_contrast(site: str, chromium: Browser, theme: str) -> None:
    page, _ = opened(chromium, f"{site}/book/contributing.html")
    in_theme(page, theme)
    found = Axe().run(page, context="pre", options={"runOnly": ["color-contrast"], "resultTypes": ["violations"]})
    assert found.response["violations"] == []
    page.context.close()


def test_a_formula_that_scrolls_says_so_and_takes_the_keyboard(site: str, chromium: Browser) -> None:
    page, _ = opened(chromium, f"{site}/book/02-forward.html")
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(400)
    wide = page.locator("article div.math mjx-container.scrolls")
    assert wide.count() > 0
    assert page.locator("p.scroll-hint").count() == wide.count()
    wide.first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert wide.first.evaluate("e => e.scrollLeft") > 0
    page.context.close()


def test_asides_fold_and_a_link_into_one_unfolds_them(site: str, chromium: Browser) -> None:
    page, _ = opened(chromium, f"{site}/book/01-gaussians.html")
    hidden = "[...document.querySelectorAll('section.aside > p')].filter(e => e.getClientRects().length).length"
    assert page.evaluate(hidden) > 0
    page.get_by_role("button", name="Fold the asides").press("Enter")
    assert page.evaluate(hidden) == 0
    target = page.evaluate("document.querySelector('section.aside').id")
    page.evaluate(f"location.hash = '#{target}'")
    page.wait_for_timeout(200)
    assert page.evaluate(hidden) > 0
    page.context.close()


def test_search_finds_an_equation_by_its_number(site: str, chromium: Browser) -> None:
    page, _ = opened(chromium, f"{site}/search.html?q=(4.29)")
    link = page.locator("p.found-equation a")
    link.wait_for()
    link.click()
    page.wait_for_load_state()
    assert "04-elbo-to-mse.html#equation-eq-" in page.url
    number = page.evaluate("document.getElementById(location.hash.slice(1)).querySelector('.eqno').innerText")
    assert number.startswith("(4.29)")
    page.context.close()


def test_no_motion_where_none_is_wanted(site: str, chromium: Browser) -> None:
    """An animation is replaced by its last frame."""
    for motion, ending in (("reduce", "-still.png"), ("no-preference", ".png")):
        page, _ = opened(chromium, f"{site}/book/07-sampling.html", reduced_motion=motion)
        image = page.locator("picture img").first
        image.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        shown = image.evaluate("e => e.currentSrc")
        assert shown.endswith(ending)
        assert shown.endswith("-still.png") == (motion == "reduce")
        page.context.close()


@pytest.mark.parametrize("name", ["book/02-forward", "book/05-sde"])
def test_nothing_is_lost_in_print(site: str, chromium: Browser, name: str) -> None:
    page, _ = opened(chromium, f"{site}/{name}.html")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 pixels to the inch
    page.wait_for_timeout(600)
    assert page.evaluate(CUT_OFF) == []
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_is_drawn_for_its_page(site: str, chromium: Browser, theme: str) -> None:
    page, _ = opened(chromium, f"{site}/book/01-gaussians.html")
    in_theme(page, theme)
    drawn = page.locator(".figure-of-cell img").all()
    shown = [
        image.get_attribute("src") for image in drawn if image.evaluate("e => getComputedStyle(e).display") != "none"
    ]
    assert len(shown) >= 2
    assert all(("-night" in source) == (theme == "dark") for source in shown)
    page.context.close()


if __name__ == "__main__":
    with served() as address, browser() as launched:
        for name in sys.argv[1:] or PAGES:
            page, said = opened(launched, f"{address}/{name}.html")
            laptop, axe = page.evaluate(CUT_OFF), violations(page)
            in_theme(page, "dark")
            dark = violations(page, "color-contrast")
            wide = page.evaluate(SCROLLING)
            page.set_viewport_size(PHONE)
            page.wait_for_timeout(400)
            phone, scrolling = page.evaluate(CUT_OFF), page.evaluate(SCROLLING)
            print(
                f"{name:28} cut off at 1300/390 px {len(laptop):3}/{len(phone):3}, "
                f"formulas that scroll {wide:3}/{scrolling:3}, "
                f"axe light/dark {len(axe):3}/{len(dark):3}, console {len(said)}"
            )
            for line in dict.fromkeys([*laptop[:6], *phone[:6], *axe[:4], *dark[:4], *said[:3]]):
                print("   ", line)
            page.context.close()
