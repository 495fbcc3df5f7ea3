"""Writes the results as CSV or Parquet. Parquet requires pyarrow."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_client.errors import ConfigurationError

from llava_cli.atomic_file import replacing
from llava_cli.folder.record import COLUMNS, Record

__all__ = ["check_format", "export"]

_SUFFIXES = (".jsonl", ".csv", ".parquet")


def check_format(path: Path) -> None:
    """Raise ConfigurationError if the extension is not supported or a required package is not installed."""
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(
            f"The extension of the output {str(path)!r} is not supported. Use {', '.join(_SUFFIXES)}."
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigurationError(
            "Parquet files require pyarrow. Install it with `pip install pyarrow`, or write .csv or .jsonl."
        )


def export(records: Iterable[Record], path: Path) -> None:
    """Write ``records`` to ``path`` unless it is the JSON Lines file itself. Raises OSError."""
    if path.suffix == ".jsonl":
        return
    rows = [_row(record) for record in records]
    with replacing(path) as temporary:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(rows, temporary)


def _row(record: Record) -> dict[str, Any]:
    """Return the columns. Lone surrogates, which UTF-8 cannot represent, become escapes (``\\udcff``)."""
    row = {**asdict(record), "settings": json.dumps(record.settings, ensure_ascii=False)}
    return {name: _utf8(value) if isinstance(value, str) else value for name, value in row.items()}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    integers = ("size", "modified_ns")
    schema = pyarrow.schema(
        [(name, pyarrow.int64() if name in integers else pyarrow.string()) for name in COLUMNS]
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
