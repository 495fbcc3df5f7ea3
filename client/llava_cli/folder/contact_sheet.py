"""Writes an HTML page that shows each image with its response.

The page contains links to the image files, relative to the page, and loads them as the user scrolls. It
loads nothing from a network and contains no scripts.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from llava_client.errors import ConfigurationError

from llava_cli.folder.atomic_file import replacing
from llava_cli.folder.record import Record
from llava_cli.printing import sanitize

__all__ = ["check_page", "write_contact_sheet"]

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


def check_page(path: Path) -> None:
    """Raise ConfigurationError if the page cannot be written, before any requests are sent."""
    if path.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"The contact sheet {str(path)!r} must have the extension .html.")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"Cannot write {str(path)!r}: the folder does not exist.")


def write_contact_sheet(records: Iterable[Record], folder: Path, path: Path) -> None:
    """Write the page for the images in ``folder``. Raises OSError."""
    records = list(records)
    images = os.path.relpath(os.path.abspath(folder), os.path.abspath(path.parent))
    title = _escape(records[0].prompt if records else "")
    model = _escape(records[0].model if records else "")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.write(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n<p>{model}, {len(records):,} images</p>\n<main>\n"
        )
        file.writelines(_figure(record, images) for record in records)
        file.write("</main>\n</html>\n")


def _figure(record: Record, images: str) -> str:
    url = quote(os.fsencode(f"{images}/{record.image}".replace(os.sep, "/")))
    if record.error is None:
        caption = f"<p>{_escape(record.text or '')}</p>"
    else:
        caption = f'<p class="error">{_escape(record.error)}</p>'
    return (
        f'<figure><a href="{url}"><img loading="lazy" decoding="async" alt="" src="{url}"></a>'
        f"<figcaption><small>{_escape(record.image)}</small>{caption}</figcaption></figure>\n"
    )


def _escape(text: str) -> str:
    return html.escape(sanitize(text))
