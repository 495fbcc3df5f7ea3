"""Walks the parts of a JSON schema and follows the references between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Path", "at", "nested", "resolve", "subschemas"]

Path = tuple[str | int, ...]

_IN_PLACE = ("additionalItems", "additionalProperties", "items")
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("patternProperties", "properties")
_DEFINITIONS = ("$defs", "definitions", "dependentSchemas")
_NOT_IN_LIBRARY = tuple(
    ["contains", "else", "if", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"]
)


def subschemas(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield this schema and all schemas nested in it, with their paths. Values of other types are skipped."""
    waiting: list[tuple[Path, Any]] = [((), schema)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, dict):
            yield path, part
            waiting += [((*path, *step), child) for step, child in nested(part, is_complete=True)]


def nested(part: dict[str, Any], *, is_complete: bool = False) -> Iterator[tuple[Path, Any]]:
    """Yield the schemas directly inside this schema, with their relative paths.

    Those that the library does not use are included only if ``is_complete`` is true.
    """
    others = (_NOT_IN_LIBRARY, _DEFINITIONS) if is_complete else ((), ())
    for keyword in (*_IN_PLACE, *others[0]):
        if keyword in part:
            yield (keyword,), part[keyword]
    for keyword in _LISTS:
        if isinstance(part.get(keyword), list):
            yield from (((keyword, index), child) for index, child in enumerate(part[keyword]))
    for keyword in (*_NAMED, *others[1]):
        if isinstance(part.get(keyword), dict):
            yield from (((keyword, name), child) for name, child in part[keyword].items())


def resolve(pointer: str, root: dict[str, Any]) -> Path | None:
    """Return the path of the schema at a JSON pointer (RFC 6901). None if it does not exist."""
    path: Path = ()
    current: Any = root
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(current, dict) and name in current:
            path, current = (*path, name), current[name]
        elif isinstance(current, list) and name.isdecimal() and int(name) < len(current):
            path, current = (*path, int(name)), current[int(name)]
        else:
            return None
    return path if isinstance(current, dict) else None


def at(root: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the schema at a path."""
    part: Any = root
    for step in path:
        part = part[step]
    assert isinstance(part, dict)
    return part
