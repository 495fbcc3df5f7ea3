"""Writes an HTML page that shows each image with its response."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from llava_client.errors import ConfigurationError

from llava_cli.folder.record import Record
from llava_cli.image_page import Figure, Paragraph, write_page

__all__ = ["check_page", "write_contact_sheet"]


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
    title = records[0].prompt if records else ""
    model = records[0].model if records else ""
    figures = (_figure(record, images) for record in records)
    write_page(path, title, f"{model}, {len(records):,} images", figures)


def _figure(record: Record, images: str) -> Figure:
    url = quote(os.fsencode(f"{images}/{record.image}".replace(os.sep, "/")))
    caption = Paragraph(record.text or "") if record.error is None else Paragraph(record.error, "error")
    return Figure([url], record.image, [caption])
