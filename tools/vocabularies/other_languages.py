"""Extracts field names from the source code of servers that are written in Go and C++."""

from __future__ import annotations

import re
from pathlib import Path

from vocabularies.python_types import Vocabulary

__all__ = ["cpp_fields", "go_fields"]

_GO_FIELD = re.compile(r'^\s*(\w+)?\s*([\w.*\[\]]+)\s+`json:"([^",]*)')
_GO_EMBEDDED = re.compile(r"^\s*(\w+)\s*$")
_CPP_COMMENT = re.compile(r"//[^\n]*|#if 0.*?#endif", re.DOTALL)
_CPP_FIELD = re.compile(
    r"(?P<call>new field_\w+|add_alias|add_subfield\(\(new field_\w+|json_value"
    r'|(?:response_)?body\.(?:at|contains|count))\((?:(?:(?:response_)?body|data), *)?"(?P<name>\w+)"'
)


def go_fields(path: Path, struct: str) -> Vocabulary:
    """Return the fields of a Go struct and of the structs of the same file in its fields."""
    return _go_fields(path.read_text("utf-8"), struct, "", ())


def _go_fields(source: str, struct: str, prefix: str, parents: tuple[str, ...]) -> Vocabulary:
    body = re.search(rf"^type {struct} struct {{\n(.*?)^}}", source, re.DOTALL | re.MULTILINE)
    if body is None or struct in parents:
        return {}
    found: Vocabulary = {}
    for line in body[1].splitlines():
        embedded, field = _GO_EMBEDDED.match(line), _GO_FIELD.match(line)
        if embedded:
            found |= _go_fields(source, embedded[1], prefix, (*parents, struct))
        elif field and field[3] not in ("", "-"):
            found[f"{prefix}{field[3]}"] = set()
            kind = field[2].lstrip("*[]")
            found |= _go_fields(source, kind, f"{prefix}{field[3]}.", (*parents, struct))
    return found


def cpp_fields(path: Path, function: str) -> Vocabulary:
    """Return the fields that a C++ function or lambda reads from a JSON request body."""
    source = path.read_text("utf-8")
    start = source.index(function)
    # A function ends at the next line that closes its block at the indentation of its first line.
    indent = len(source[:start].rpartition("\n")[2]) - len(source[:start].rpartition("\n")[2].lstrip())
    end = re.compile(rf"^ {{{indent}}}}}", re.MULTILINE).search(source, start)
    found: Vocabulary = {}
    owner = ""
    for match in _CPP_FIELD.finditer(
        _CPP_COMMENT.sub("", source[start : end.start() if end else len(source)])
    ):
        if match["call"].startswith("add_subfield"):
            found[f"{owner}.{match['name']}"] = set()
        elif match["call"] != "json_value" or '"' not in match[0].partition("(")[2].partition(",")[0]:
            owner = match["name"]
            found[owner] = set()
    return found
