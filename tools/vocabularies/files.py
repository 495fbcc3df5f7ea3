"""The files that contain the vocabularies: one field per line, with its literal values."""

from __future__ import annotations

from pathlib import Path

from vocabularies.python_types import Vocabulary

__all__ = ["FOLDER", "read", "to_text"]

FOLDER = Path(__file__).parent / "data"


def to_text(vocabulary: dict[str, Vocabulary]) -> str:
    """Return the text of a file: each route, followed by its fields and their literal values."""
    lines = []
    for route, fields in sorted(vocabulary.items()):
        lines += [route, *(" ".join(["   ", path, *sorted(fields[path])]) for path in sorted(fields)), ""]
    return "\n".join(lines)


def read(name: str) -> dict[str, Vocabulary]:
    """Return the vocabulary of each route in a file. Raises OSError."""
    found: dict[str, Vocabulary] = {}
    fields: Vocabulary = {}
    for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith(" "):
            path, *values = line.split()
            fields[path] = set(values)
        elif line:
            fields = found.setdefault(line, {})
    return found
