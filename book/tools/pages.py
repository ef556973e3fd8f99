"""Sphinx extension: what the pages need and the theme does not give.

Sections whose heading begins with "Aside:" are marked, scripts that nothing uses are left out, roles that no browser knows
are replaced, and the numbers of all equations are written down for the search page. With a base URL there is a sitemap.
"""

from __future__ import annotations

import html
import json
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

CARD = "figures/00-first-look-fl-5-sheet.png"
UNUSED = ("thebe",)  # the theme's live code needs another host


def mark_asides(app: Sphinx, doctree: nodes.document) -> None:
    """Give a section that may be skipped the class ``aside``."""
    for section in doctree.findall(nodes.section):
        if section[0].astext().startswith("Aside:"):
            section["classes"].append("aside")


def tidy(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Clean one page before it is written."""
    context["default_mode"] = "auto"
    for kind in ("script_files", "css_files"):
        context[kind] = [f for f in context.get(kind, []) if not any(word in _address(f) for word in UNUSED)]
    context["metatags"] = context.get("metatags", "") + _head(app, page, doctree)
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def _head(app: Sphinx, page: str, doctree: nodes.document | None) -> str:
    """Return what a search engine or a messenger shows of a page: title, first words and a picture."""
    if doctree is None:
        return ""
    first = next((p.astext() for p in doctree.findall(nodes.paragraph) if len(p.astext()) > 60), "")
    words = html.escape(textwrap.shorten(first, 200, placeholder=" …"), quote=True)
    title = html.escape(app.env.titles[page].astext(), quote=True)
    facts = {"og:title": title, "og:description": words, "og:type": "article"}
    if base := app.config.html_baseurl.rstrip("/"):
        facts |= {"og:url": f"{base}/{app.builder.get_target_uri(page)}", "og:image": f"{base}/_static/{CARD}"}
    tags = "".join(f'<meta property="{name}" content="{value}">' for name, value in facts.items())
    return f'<meta name="description" content="{words}">{tags}'


def _address(file: Any) -> str:
    return f"{getattr(file, 'filename', file)} {getattr(file, 'attributes', {}).get('body', '')}".lower()


def write_indexes(app: Sphinx, error: Exception | None) -> None:
    """Write the numbers of the equations for the search page, and the sitemap where the site's address is known."""
    if error or app.builder.format != "html":
        return
    domain = app.env.get_domain("math")
    found = {}
    for label, (page, _) in domain.equations.items():
        number = app.env.toc_fignumbers.get(page, {}).get("displaymath", {}).get(f"equation-{label}")
        if number:
            address = f"{app.builder.get_target_uri(page)}#equation-{label}"
            found[".".join(map(str, number))] = [address, app.env.titles[page].astext()]
    out = Path(app.outdir)
    (out / "_static" / "equations.js").write_text(f"window.EQUATIONS = {json.dumps(found)};\n")
    if base := app.config.html_baseurl:
        urls = "".join(
            f"<url><loc>{base.rstrip('/')}/{app.builder.get_target_uri(p)}</loc></url>"
            for p in sorted(app.env.found_docs)
        )
        head = '<?xml version="1.0" encoding="utf-8"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        (out / "sitemap.xml").write_text(f"{head}{urls}</urlset>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the steps, and load the book's own style and script."""
    app.connect("doctree-read", mark_asides)
    app.connect("html-page-context", tidy, priority=900)
    app.connect("build-finished", write_indexes)
    app.add_css_file("book.css")
    app.add_js_file("book.js")
    return {"parallel_read_safe": True}
