"""The built HTML, as a reader without a network meets it. Built by ``make book``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import equations  # noqa: E402

HTML = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()]


SHOWN_AS_IT_IS = ("script", "style", "code", "pre")


class Page(HTMLParser):
    """What a browser would load for a page, and the prose it would show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.loaded, self.links, self.ids = path, [], [], set()
        self.images: list[dict[str, str | None]] = []
        self.text: list[str] = []
        self._hidden = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = dict(attrs)
        self.ids |= {a["id"]} if a.get("id") else set()
        self._hidden += tag in SHOWN_AS_IT_IS
        if tag in ("script", "iframe") and a.get("src"):
            self.loaded.append(a["src"])
        if tag == "link" and a.get("rel") not in ("canonical", "search", "index", "next", "prev", "author"):
            self.loaded.append(a.get("href"))
        if tag == "img":
            self.images.append(a)
            self.loaded.append(a.get("src"))
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in SHOWN_AS_IT_IS

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)


@pytest.fixture(scope="module")
def site() -> dict[str, Page]:
    assert HTML.is_dir(), "no built book: run `make book`"
    return {page: Page(HTML / f"{page}.html") for page in PAGES}


def test_front_page_leads_to_the_preface() -> None:
    assert "book/intro.html" in (HTML / "index.html").read_text()


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_page_shows_the_notebook_that_was_executed(site: dict[str, Page], page: str) -> None:
    executed = ROOT / "_build" / "executed" / f"{Path(page).name}.ipynb"
    notebook = nbformat.read(executed, 4)
    committed = nbformat.read(ROOT / f"{page}.ipynb", 4)
    assert [c.source for c in notebook.cells] == [c.source for c in committed.cells], "built from another version"
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 2
    shown = [str(image.get("src")) for image in site[page].images if "figures/" in str(image.get("src"))]
    assert len([source for source in shown if not source.endswith("-night.png")]) == len(figures)
    assert len([source for source in shown if source.endswith("-night.png")]) >= 2


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_another_host(site: dict[str, Page], page: str) -> None:
    remote = [url for url in site[page].loaded if url and re.match(r"(https?:)?//", url)]
    assert remote == []


@pytest.mark.parametrize("page", PAGES)
def test_every_loaded_file_and_linked_page_exists(site: dict[str, Page], page: str) -> None:
    parsed: dict[Path, Page] = {p.path: p for p in site.values()}
    missing = []
    for url in [*site[page].loaded, *site[page].links]:
        target, _, fragment = str(url).partition("#")
        if re.match(r"[a-z]+:|//", str(url)):
            continue
        path = (site[page].path.parent / target.partition("?")[0]).resolve() if target else site[page].path
        ids = parsed[path].ids if path in parsed else None
        if not path.exists() or (fragment and ids is not None and fragment not in ids):
            missing.append(url)
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_has_alt_text(site: dict[str, Page], page: str) -> None:
    figures = [image for image in site[page].images if re.search("_images/|figures/", str(image.get("src")))]
    assert [i.get("src") for i in figures if len((i.get("alt") or "").split()) < 5] == []
    assert [i.get("src") for i in site[page].images if not i.get("alt")] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_markup_is_left_raw(site: dict[str, Page], page: str) -> None:
    raw = r"\{(?:eq|ref|numref|cite:?\w*|term|py:\w+|doc)\}`|^:::|\]\(#|Traceback \(most recent"
    assert re.findall(raw, "".join(site[page].text), re.MULTILINE) == []
    assert 'class="problematic"' not in site[page].path.read_text()
    assert re.findall(r"<p>\s*\|.*\|", site[page].path.read_text()) == [], "a table that is shown as text"


def test_equations_are_numbered_and_unique(site: dict[str, Page]) -> None:
    labels = [label for page in NOTEBOOKS for label in site[page].ids if label.startswith("equation-eq-")]
    defined = [
        label
        for page in NOTEBOOKS
        for cell in nbformat.read(ROOT / f"{page}.ipynb", 4).cells
        if cell.cell_type == "markdown"
        for label, _ in equations.defined(cell.source)
    ]
    assert len(defined) == len(set(defined)), "a label is defined twice"
    assert sorted(labels) == sorted(f"equation-{label}" for label in defined)


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_the_numbers_in_the_notebook_are_those_of_the_page(page: str) -> None:
    html = (HTML / f"{page}.html").read_text()
    built = dict(re.findall(r'id="equation-(eq-[a-z0-9-]+)">\s*<span class="eqno">\(([\d.]+)\)', html))
    notebook = nbformat.read(ROOT / f"{page}.ipynb", 4)
    committed = dict(found for cell in equations.prose(notebook) for found in equations.defined(cell.source))
    assert committed == built


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_it_is_about_and_loads_nothing_unused(page: str) -> None:
    html = (HTML / f"{page}.html").read_text()
    description = re.search(r'<meta name="description" content="([^"]{60,})">', html)
    assert description and f'property="og:description" content="{description[1]}"' in html
    assert 'property="og:title"' in html
    assert "favicon.svg" in html
    assert "THEBE_JS_URL" not in html


def test_a_lost_reader_finds_a_page_and_the_numbers_of_equations_are_written_down() -> None:
    assert "book/intro.html" in (HTML / "404.html").read_text()
    numbers = (HTML / "_static" / "equations.js").read_text()
    for number in ("1.1", "4.29", "8.1"):
        assert f'"{number}": ["book/0{number[0]}-' in numbers


def test_asides_are_marked_on_the_page() -> None:
    html = (HTML / "book/04-elbo-to-mse.html").read_text()
    assert len(re.findall(r'<section class="[^"]*aside', html)) >= 5


CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to render the maths")
@pytest.mark.parametrize("page", [NOTEBOOKS[0], NOTEBOOKS[3], "book/notation"])
def test_maths_renders_without_a_network(page: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --dump-dom"
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}", "--virtual-time-budget=30000"]
    command = [CHROMIUM, *flags.split(), *offline, (HTML / f"{page}.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=180).stdout
    spans = len(re.findall(r'class="math notranslate nohighlight', dom))
    assert spans > 10
    assert dom.count("<mjx-container") >= spans
    assert "<mjx-merror" not in dom
