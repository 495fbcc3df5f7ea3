"""Checks the files of a local dataset before any request is sent.

``columns`` maps each required column to what its values must be: a list of the allowed values, which are
compared without regard to case, or a key of ``_KINDS``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["FormatError", "check_file"]

Columns = dict[str, Any]


class FormatError(Exception):
    """A file does not have the expected format. The message states the file and the line."""


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a non-empty string", lambda value: isinstance(value, str) and bool(value.strip())),
    "value": ("a string or number", lambda value: isinstance(value, str | int)),
    "number": ("an integer", lambda value: isinstance(value, int)),
    "optional": ("any value or null", lambda _: True),
    "texts": ("a list of strings", lambda value: _is_list_of(value, lambda each: isinstance(each, str))),
    "answers": (
        'a list of objects with the string "answer"',
        lambda value: _is_list_of(
            value, lambda each: isinstance(each, dict) and isinstance(each.get("answer"), str)
        ),
    ),
}


def _is_list_of(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_valid, value))


def check_file(path: Path, columns: Columns) -> None:
    """Raise FormatError for the first row of a Parquet or JSON Lines file that does not match ``columns``.

    In a JSON Lines file, the column ``image`` is the column ``file_name``: the path of the image file,
    relative to the file.
    """
    if path.suffix == ".parquet":
        _check_parquet(path, columns)
        return
    has_images = "image" in columns.values()
    expected = {name: kind for name, kind in columns.items() if kind != "image"}
    if has_images:
        expected["file_name"] = "text"
    checked: set[str] = set()  # many rows can refer to one image
    place = None
    for place, row in _lines(path):
        _check_row(place, row, expected)
        if has_images and row["file_name"] not in checked:
            _check_image(place, path.parent / row["file_name"])
            checked.add(row["file_name"])
    if place is None:
        raise FormatError(f"{str(path)!r} is empty. {_one_object_per_line()} {_expected(expected)}")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{str(path)!r}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FormatError(f"{place} is not valid JSON: {error}. {_one_object_per_line()}") from error
            if not isinstance(row, dict):
                raise FormatError(f"{place} is not a JSON object. {_one_object_per_line()}")
            yield place, row


def _one_object_per_line() -> str:
    return "The file must contain one JSON object per line."


def _check_row(place: str, row: dict[str, Any], columns: Columns) -> None:
    for name, kind in columns.items():
        if name not in row:
            if kind == "optional":
                continue
            raise FormatError(f"{place} has no {name!r}. {_expected(columns)}")
        value = row[name]
        if isinstance(kind, list):
            is_valid = isinstance(value, str) and value.strip().lower() in [each.lower() for each in kind]
        else:
            is_valid = kind == "image" or _KINDS[kind][1](value)
        if not is_valid:
            shown = f"{value!r:.100}"
            raise FormatError(f"{place} has the {name} {shown}, not {_describe(kind)}. {_expected(columns)}")


def _describe(kind: Any) -> str:
    if isinstance(kind, list):
        return " or ".join(map(repr, kind))
    return "an image" if kind == "image" else _KINDS[kind][0]


def _expected(columns: Columns) -> str:
    listed = ", ".join(f"{name} ({_describe(kind)})" for name, kind in columns.items())
    return f"Each row must have: {listed}."


def _check_image(place: str, source: Path | bytes) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()  # a truncated image can be opened, but not decoded
    except FileNotFoundError as error:
        raise FormatError(f"{place} refers to the image {str(source)!r}, which does not exist.") from error
    # ValueError: a null character in the path; the others are raised by Pillow's decoders
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        shown = (
            f"The image in {place}" if isinstance(source, bytes) else f"The image {str(source)!r} in {place}"
        )
        raise FormatError(f"{shown} cannot be read: {error}.") from error


def _check_parquet(path: Path, columns: Columns) -> None:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        names = set(file.schema_arrow.names)
        required = [name for name, kind in columns.items() if kind != "optional"]
        if missing := next((name for name in required if name not in names), None):
            raise FormatError(f"{str(path)!r} has no column {missing!r}. {_expected(columns)}")
        number = 0
        for batch in file.iter_batches(64, columns=[name for name in columns if name in names]):
            for row in batch.to_pylist():
                number += 1
                _check_parquet_row(f"{str(path)!r}, row {number}", row, columns)
        if not number:
            raise FormatError(f"{str(path)!r} has no rows. {_expected(columns)}")
    except ArrowInvalid as error:
        raise FormatError(f"{str(path)!r} is not a valid Parquet file: {error}") from error


def _check_parquet_row(place: str, row: dict[str, Any], columns: Columns) -> None:
    _check_row(place, row, columns)
    for name, kind in columns.items():
        if kind != "image":
            continue
        value = row[name]
        images = value if isinstance(value, list) else [value]
        for image in images:
            stored = image if isinstance(image, dict) else {}
            source = stored.get("bytes") or stored.get("path")
            if source is None:
                raise FormatError(f"{place} has no image in the column {name!r}. {_expected(columns)}")
            _check_image(place, source if isinstance(source, bytes) else Path(source))
