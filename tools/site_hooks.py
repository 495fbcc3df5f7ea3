"""MkDocs hooks that add files from outside ``docs`` to the site, and make links to them work.

- The Markdown files in ``PAGES`` become pages of the site.
- Other linked files of the repository are copied: images as they are, and text as a page with a code block.
- ``<!-- include FILE "HEADING" -->`` is replaced with the text below this heading of a Markdown file.
- The theme's search dialog gets a name for screen readers.

The same links therefore work on GitHub, in a clone and on the site. A link to a folder is an error, because
the site has no page for it.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Path in the repository: path in the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "how-it-works/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security-policy.md",
    "bench/README.md": "performance/benchmarks.md",
    "examples/README.md": "guides/examples.md",
    "tests/data/prompts/README.md": "fidelity-prompts.md",
    "worker/llava_worker/model/cpu/README.md": "how-it-works/cpu-kernels.md",
    "worker/llava_worker/tiny/README.md": "get-started/tiny-llava.md",
}
SOURCES = {site: path for path, site in PAGES.items()}
IMAGES = (".png", ".svg", ".jpg", ".webp")
LOGO = "server/llava_server/playground/icon.svg"
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s\[]+)(?=\))")
_INCLUDE = re.compile(r'^<!-- include (\S+) "(.+)" -->$', re.MULTILINE)
_SEARCH = 'data-md-component="search" role="dialog"'
_log = logging.getLogger("mkdocs.plugins.site_hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and all linked files of the repository."""
    for path, site in PAGES.items():
        if site not in files.src_uris:
            files.append(File.generated(config, site, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "assets/logo.svg", abs_src_path=str(ROOT / LOGO)))
    for page in list(files.documentation_pages()):
        for path in _linked_files(page.content_string, _source_of(page.src_uri)):
            if _site_path(path) not in files.src_uris:
                files.append(_copied(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Expand the includes of a page, remove its comments and change its links to paths in the site."""
    if page.file.src_uri.startswith("repository/"):
        return markdown
    source = _source_of(page.file.src_uri)
    text = _INCLUDE.sub(lambda match: _moved(_section(match[1], match[2]), match[1], page), markdown)
    return re.sub(r"^ *<!--.*?-->\n", "", _moved(text, source, page), flags=re.MULTILINE)


def on_post_page(output: str, **_: object) -> str:
    """Name the search dialog. Fails if the theme has changed, so that the name is not lost unnoticed."""
    named = output.replace(_SEARCH, f'{_SEARCH} aria-label="Search"')
    if named == output:
        _log.error("The page has no search dialog with %s. Adapt tools/site_hooks.py to the theme.", _SEARCH)
    return named


def _source_of(site: str) -> str:
    """Return the path in the repository of a page of the site."""
    return SOURCES.get(site, f"docs/{site}") if site != "index.md" else "docs/index.md"


def _site_path(path: str) -> str:
    """Return the path in the site of a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    visible = path.removeprefix(".")  # MkDocs ignores hidden folders
    return (
        f"repository/{visible}" if path.endswith(IMAGES) else f"repository/{visible.removesuffix('.md')}.md"
    )


def _linked_files(text: str, source: str) -> Iterator[str]:
    """Yield the paths of linked files that are not in ``docs`` and not pages of the site."""
    for match in _INCLUDE.finditer(text):
        yield from _linked_files(_section(match[1], match[2]), match[1])
    for match in _LINK.finditer(_FENCE.sub("", text)):
        path = _target(match[1], source)[0]
        if not path.startswith("docs/") and path not in PAGES:
            yield path


def _target(link: str, source: str) -> tuple[str, str]:
    """Return the path in the repository and the anchor to which a link in a file leads."""
    name, mark, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), name)), mark + anchor


def _copied(path: str, config: MkDocsConfig) -> File:
    """Return a file of the site that contains or shows a file of the repository."""
    original = ROOT / path
    if path.endswith((*IMAGES, ".md")):
        return File.generated(config, _site_path(path), abs_src_path=str(original))
    if not original.is_file():
        _log.warning("The documentation links to '%s', which is not a file.", path)
        return File.generated(config, _site_path(path), content="")
    head = f"---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n"
    language = original.suffix.removeprefix(".") or "text"
    text = original.read_text("utf-8").rstrip("\n")
    return File.generated(config, _site_path(path), content=f"{head}````{language}\n{text}\n````\n")


def _section(path: str, heading: str) -> str:
    """Return the text below a heading of level 2. Raises ValueError if there is no such heading."""
    _, found, text = (ROOT / path).read_text("utf-8").partition(f"\n## {heading}\n")
    if not found:
        raise ValueError(f"{path} has no section '{heading}'.")
    return text.partition("\n## ")[0].strip("\n")


def _moved(text: str, source: str, page: Page) -> str:
    """Return a text of the repository with links that are relative to a page of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path, anchor = _target(match[1], source)
        return os.path.relpath(_site_path(path), folder or ".") + anchor

    def converted(part: str) -> str:
        # Python-Markdown requires four spaces for the content of lists, where other programs accept two.
        return re.sub(r"^  (?=\S)", "    ", _LINK.sub(moved, part), flags=re.MULTILINE)

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else converted(part) for part in parts)
