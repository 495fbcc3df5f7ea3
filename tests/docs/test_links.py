"""All relative links in the Markdown files lead to existing files and sections."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "*/README.md",
        "tests/**/README.md",
        "worker/**/README.md",
        ".github/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`|<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)|(?:src|href|srcset)=\"([^\"]+)\"")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """Return the targets of the relative links and images in a page."""
    found = (match[1] or match[2] for match in _LINK.finditer(_CODE.sub("", text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings in a page, as GitHub creates them, and explicit anchors."""
    found = set(re.findall(r"<a id=\"([\w-]+)\">", text))
    slugs: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}-{slugs[slug]}" if slugs[slug] else slug)
        slugs[slug] += 1
    return found


def broken(text: str, path: Path) -> list[str]:
    """Return the links in the text of a page whose file or section does not exist."""
    found = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = Path(os.path.normpath(path.parent / name)) if name else path
        if not target.exists() or not target.is_relative_to(ROOT):
            found.append(f"{path.relative_to(ROOT)}: {link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text("utf-8")):
            found.append(f"{path.relative_to(ROOT)}: {link}: no such section")
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_to_existing_files_and_sections(path: Path) -> None:
    assert broken(path.read_text("utf-8"), path) == []


def test_broken_links_are_found() -> None:
    text = "[a](nothing.md) ![b](nothing.png) [c](README.md#nothing) `[d](x.md)` [e](https://example.com)"
    assert links(text) == ["nothing.md", "nothing.png", "README.md#nothing"]
    assert len(broken(text, ROOT / "page.md")) == 3
    assert anchors("# A `b_c` & d\n## A\n## A\n") == {"a-b_c--d", "a", "a-1"}
