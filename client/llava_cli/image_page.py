"""Writes HTML pages that show images with text.

A page contains links to the image files, relative to the page, and loads them as the user scrolls. It loads
nothing from a network and contains no scripts.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_cli.atomic_file import replacing
from llava_cli.printing import sanitize

__all__ = ["Figure", "Paragraph", "write_page"]

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; content-visibility: auto; contain-intrinsic-size: auto 18rem; overflow-wrap: anywhere; }
img { width: 100%; height: 12rem; object-fit: contain; background: #8882; }
small { display: block; color: GrayText; }
p { margin: .3rem 0; white-space: pre-wrap; }
.error { color: #c33; }
"""


@dataclass(frozen=True)
class Paragraph:
    """Text below an image. ``kind`` is the CSS class."""

    text: str
    kind: str = ""

    def html(self) -> str:
        attribute = f' class="{self.kind}"' if self.kind else ""
        return f"<p{attribute}>{_escape(self.text)}</p>"


@dataclass(frozen=True)
class Figure:
    """Images, given as relative URLs, with a name and text."""

    urls: Sequence[str]
    name: str
    paragraphs: Sequence[Paragraph]

    def html(self) -> str:
        images = "".join(
            f'<a href="{url}"><img loading="lazy" decoding="async" alt="" src="{url}"></a>'
            for url in map(html.escape, self.urls)
        )
        text = "".join(paragraph.html() for paragraph in self.paragraphs)
        return (
            f"<figure>{images}<figcaption><small>{_escape(self.name)}</small>{text}</figcaption></figure>\n"
        )


def write_page(path: Path, title: str, summary: str, figures: Iterable[Figure]) -> None:
    """Write the page. Raises OSError."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{_escape(title)}</title>\n'
            f"<style>{_STYLE}</style>\n<h1>{_escape(title)}</h1>\n<p>{_escape(summary)}</p>\n<main>\n"
        )
        file.writelines(figure.html() for figure in figures)
        file.write("</main>\n</html>\n")


def _escape(text: str) -> str:
    return html.escape(sanitize(text))
