"""The documentation site that ``make docs`` builds works from a folder, without a server or a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.axe import findings
from tests.machine_speed import scaled

pytestmark = pytest.mark.site

SITE = Path(__file__).parents[2] / "dist" / "site"
CHROMIUM = Path("/usr/bin/chromium")
# Elements whose address the browser loads with the page.
# Pages that together contain all kinds of elements.
PAGES = (
    "index.html",
    "get-started/first-response.html",
    "guides/playground.html",
    "how-it-works/fault-tolerance.html",
    "performance/results.html",
    "reference/errors.html",
    "reference/python-api.html",
)
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "srcset"}


class Document(HTMLParser):
    """The links, loaded files and anchors of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif values.get("rel") not in ("canonical", "prev", "next") and LOADED.get(tag) in values:
            self.loaded.add(values[LOADED[tag]])


@pytest.fixture(scope="module")
def documents() -> dict[Path, Document]:
    return {path: Document(path) for path in SITE.rglob("*.html") if path.name != "404.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": 1200, "height": 800})


def test_all_links_lead_to_existing_pages_and_anchors(documents: dict[Path, Document]) -> None:
    assert len(documents) > 40
    broken = []
    for path, document in documents.items():
        for link in document.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.is_file() or (anchor and anchor not in documents[target].anchors):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


def test_pages_load_only_files_of_the_site(documents: dict[Path, Document]) -> None:
    for path, document in documents.items():
        for address in document.loaded:
            assert (path.parent / unquote(address)).is_file(), f"{path.relative_to(SITE)}: {address}"
    for style in SITE.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text("utf-8")), style


def test_nested_lists_are_nested() -> None:
    changelog = (SITE / "project" / "changelog.html").read_text("utf-8")
    assert re.search(r"<li><strong>API</strong>\s*<ul>\s*<li>The routes", changelog)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, theme: Literal["light", "dark"]) -> None:
    page = browser.new_page(color_scheme=theme)
    found = {}
    for path in PAGES:
        page.goto((SITE / path).as_uri())
        scheme = {"light": "default", "dark": "slate"}[theme]
        expect(page.locator("body")).to_have_attribute("data-md-color-scheme", scheme)
        found[path] = findings(page)
    page.close()
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_search_works_from_a_folder_without_external_requests(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((SITE / "index.html").as_uri())
    search = page.get_by_placeholder("Search")
    search.fill("speculative decoding")
    search.press("End")  # the page reads the query after a key was released
    results = page.locator(".md-search-result__link")
    expect(results.first).to_contain_text("Speculative decoding", timeout=scaled(30) * 1000)
    expect(results.first).to_have_attribute("href", re.compile("speculative-decoding.html"))
    assert [url for url in requests if not url.startswith(("file:", "data:", "about:"))] == []
