"""Finds what the grammar library does not support in a JSON schema, and removes it.

``Check`` returns the library's error message for a schema, or "" if it can enforce the schema. The search for
the smallest part with an error starts at the root and follows references. In this part, the faulty keyword is
the one without which the error disappears.

To relax a schema, this keyword is removed, or the part is replaced with a schema that allows any value. This
is repeated until the library accepts the schema. Relaxing a part never makes the whole schema stricter,
because ``not`` and other keywords that negate a part are not supported, and ``oneOf`` is replaced with
``anyOf``. `_without` handles keywords that define which values another keyword applies to. If a removed
keyword could describe other properties, ``additionalProperties: true`` is added, so that `closed_schema` does
not forbid them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava_worker.engine.structured_output.schema_tree import Path, at, nested, resolve, subschemas

__all__ = [
    "OPTIONS",
    "UNSATISFIABLE",
    "Check",
    "Fault",
    "find_fault",
    "has_ignored_keyword",
    "relaxed_schema",
]

Check = Callable[[dict[str, Any]], str]

# Keywords that affect validation and that llguidance does not implement (parser/src/json/schema.rs), with
# those of drafts 3 and 4, which it ignores.
_UNSUPPORTED = frozenset(
    {
        "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired",
        "dependentSchemas", "disallow", "divisibleBy", "else", "extends", "if", "maxContains",
        "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
        "uniqueItems",
    }
)  # fmt: skip
_IGNORED_BY_LIBRARY = ("extends", "disallow", "divisibleBy")
OPTIONS = "x-guidance"  # a keyword that contains options for the library
UNSATISFIABLE = "Unsatisfiable schema"  # the start of the library's message if no value is valid
# parser/src/json/formats.rs
_FORMATS = frozenset(
    {
        "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown",
        "uri", "uuid",
    }
)  # fmt: skip
_EXACT = 2**53  # JSON integers are exact up to this value

# Keywords that can describe or require properties that the part itself does not list.
_ADDING_PROPERTIES = frozenset(
    {
        "$dynamicRef", "$recursiveRef", "$ref", "allOf", "anyOf", "dependencies", "dependentRequired",
        "dependentSchemas", "else", "extends", "oneOf", "patternProperties", "properties", "then",
        "unevaluatedProperties",
    }
)  # fmt: skip
# Keywords that are not assertions. They do not affect which values are valid.
_ANNOTATIONS = frozenset(
    {
        "$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "default",
        "definitions", "description", "examples", "id", "title",
    }
)  # fmt: skip
_MAX_REMOVALS = 64
_ROOT = "#/$defs/root"

# Phrases in the library's messages, and what to report instead.
_REASONS = {
    "not supported yet; Word": r"word boundaries (\b and \B) are not supported",
    "look-around": "look-ahead and look-behind are not supported",
    "lookarounds": "look-ahead and look-behind are not supported",
    "oneOf constraints": "its schemas overlap, or it cannot be determined that they do not. Use anyOf",
    "min/maxProperties only": "the number of properties can be limited only if all of them are required",
    "circular references": "the reference is circular and is combined with other keywords",
    "does not exist": "the reference refers to a schema that does not exist",
    "not present in a registry": "references to other documents are not supported",
    "are not disjoint": "two of the patterns match the same name",
    "Regex is empty": "no string has this pattern, format and length",
}


@dataclass(frozen=True)
class Fault:
    """What cannot be enforced: a keyword, its location as a JSON pointer, and the reason."""

    pointer: str
    keyword: str
    reason: str

    def __str__(self) -> str:
        place = f"at {self.pointer}" if self.pointer else "at the top level"
        if not self.keyword:
            return f"the schema {place} allows no value or is not supported: {self.reason}"
        reason = f": {self.reason}" if self.reason else ""
        return f"the keyword {self.keyword!r} {place} is not supported{reason}"


def has_ignored_keyword(schema: dict[str, Any]) -> bool:
    """Return whether the schema contains a keyword that the library would ignore or enforce incorrectly."""
    return _ignored_keyword(schema) is not None


def find_fault(schema: dict[str, Any], check: Check) -> Fault | None:
    """Return the first part of the schema that the library cannot enforce. None if there is no such part."""
    fault = _ignored_keyword(schema)
    if fault is not None:
        return fault
    root = _with_rebased_references(schema)
    path = _faulty_path(root, check)
    if path is None:
        return None
    part = at(root, path)
    message = _check(part, root, check)
    # Several keywords contradict each other; none of them is unsupported.
    keyword = "" if message.startswith(UNSATISFIABLE) else _faulty_keyword(part, root, check)
    return Fault(_pointer(path), keyword, _reason(keyword, part, message))


def relaxed_schema(schema: dict[str, Any], check: Check) -> dict[str, Any] | None:
    """Return the schema without the parts that the library cannot enforce.

    The result allows all values that the schema allows. It is None if too many parts have to be removed.
    """
    root = _with_rebased_references(schema)
    for _, part in subschemas(root):
        _remove_known_faults(part)
    for _ in range(_MAX_REMOVALS):
        path = _faulty_path(root, check)
        if path is None:
            return _document({"$ref": _ROOT}, root)
        part = at(root, path)
        keyword = _faulty_keyword(part, root, check)
        remaining = _without(part, keyword) if keyword else {}
        if not keyword or keyword in _ADDING_PROPERTIES:
            remaining.setdefault("additionalProperties", True)
        part.clear()
        part.update(remaining)
    return None


def _ignored_keyword(schema: dict[str, Any]) -> Fault | None:
    """Return the first keyword that the library would ignore or enforce incorrectly."""
    for path, part in subschemas(schema):
        for keyword in (*_IGNORED_BY_LIBRARY, OPTIONS):
            if keyword in part:
                return Fault(_pointer(path), keyword, "")
        for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(part.get(keyword), bool):
                reason = "it is a boolean, as in draft 4. Use a numeric limit"
                return Fault(_pointer(path), keyword, reason)
        for keyword in ("const", "enum"):
            if any(_is_inexact(value) for value in _values(part, keyword)):
                return Fault(_pointer(path), keyword, "JSON numbers beyond 2**53 are not exact")
    return None


def _remove_known_faults(part: dict[str, Any]) -> None:
    """Remove or convert keywords that are known to be unsupported. `relaxed_schema` finds all others."""
    _remove_unsupported(part)
    if part.get("format") not in _FORMATS:
        part.pop("format", None)
    for keyword, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(part.get(keyword), bool) and part.pop(keyword) and limit in part:
            part[keyword] = part.pop(limit)
    for keyword in ("const", "enum"):
        if any(_is_inexact(value) for value in _values(part, keyword)):
            del part[keyword]
    if isinstance(part.get("oneOf"), list):
        alternatives = {"anyOf": part.pop("oneOf")}
        if "anyOf" not in part:
            part.update(alternatives)
        elif isinstance(part.setdefault("allOf", []), list):
            part["allOf"].append(alternatives)


def _remove_unsupported(part: dict[str, Any]) -> None:
    if part.get("unevaluatedProperties") is False:
        del part["unevaluatedProperties"]
    removed = part.keys() & {*_UNSUPPORTED, OPTIONS}
    for keyword in removed:
        del part[keyword]
    if removed & _ADDING_PROPERTIES:
        part.setdefault("additionalProperties", True)


def _faulty_path(root: dict[str, Any], check: Check) -> Path | None:
    """Return the path of the smallest part with an error. None if the root has none."""
    path: Path = ()
    if not _check(root, root, check):
        return None
    visited = {path}
    while True:
        part = at(root, path)
        children = [((*path, *step), child) for step, child in nested(part) if isinstance(child, dict)]
        target = _target(part, root)
        if target is not None and target not in visited:
            children.append((target, at(root, target)))
        faulty = next((inner for inner, child in children if _check(child, root, check)), None)
        if faulty is None:
            return path
        path = faulty
        visited.add(path)


def _faulty_keyword(part: dict[str, Any], root: dict[str, Any], check: Check) -> str:
    """Return the keyword that causes the part's error. "" if several keywords cause it together."""
    assertions = [keyword for keyword in part if keyword not in _ANNOTATIONS]
    for keyword in assertions:
        if keyword in _UNSUPPORTED or (keyword == "format" and part["format"] not in _FORMATS):
            return keyword
    # "type" and "properties" are tried last, because most others are not worth more.
    for keyword in sorted(assertions, key=lambda name: name in ("type", "properties")):
        if len(assertions) > 1 and not _check(_without(part, keyword), root, check):
            return keyword
    return assertions[0] if len(assertions) == 1 else ""


def _without(part: dict[str, Any], keyword: str) -> dict[str, Any]:
    """Return the part without a keyword, and without keywords that would become stricter."""
    dependents = {
        "properties": ("additionalProperties",),
        "prefixItems": ("items",),
        "items": ("additionalItems",) if isinstance(part.get("items"), list) else (),
    }
    removed = {keyword, *dependents.get(keyword, ())}
    remaining = {name: value for name, value in part.items() if name not in removed}
    if keyword == "patternProperties" and "additionalProperties" in part:
        # Names that match a pattern are not additional, so their values can match any of the schemas.
        patterns = part[keyword].values() if isinstance(part[keyword], dict) else [True]
        remaining["additionalProperties"] = {"anyOf": [*patterns, part["additionalProperties"]]}
    return remaining


def _check(part: dict[str, Any], root: dict[str, Any], check: Check) -> str:
    return check(_document(part, root))


def _document(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that is equivalent to the part, in which references relative to the root are valid."""
    return {**part, "$defs": {"root": root}}


def _with_rebased_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy in which all local references start at ``#/$defs/root`` instead of ``#``."""
    root = copy.deepcopy(schema)
    identifier = root.get("$id")
    visited: set[int] = set()
    waiting = [root]
    while waiting:
        for _, part in subschemas(waiting.pop()):
            if id(part) in visited:
                continue
            visited.add(id(part))
            for keyword in ("$id", "$schema", "$anchor", "id"):
                if isinstance(part.get(keyword), str):
                    del part[keyword]
            reference = part.get("$ref")
            if not isinstance(reference, str):
                continue
            if isinstance(identifier, str) and identifier and reference.startswith(f"{identifier}#"):
                reference = reference.removeprefix(identifier)
            if reference == "#" or reference.startswith("#/"):
                part["$ref"] = _ROOT + reference[1:].rstrip("/")
                target = _target(part, root)
                if target is not None:
                    waiting.append(at(root, target))
    return root


def _target(part: dict[str, Any], root: dict[str, Any]) -> Path | None:
    """Return the path of the schema that a rebased reference refers to. None if it does not exist."""
    reference = part.get("$ref")
    if not isinstance(reference, str) or not reference.startswith(_ROOT):
        return None
    return resolve(reference[len(_ROOT) :], root)


def _pointer(path: Path) -> str:
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _values(part: dict[str, Any], keyword: str) -> list[Any]:
    value = part.get(keyword)
    return value if keyword == "enum" and isinstance(value, list) else [value]


def _json(value: Any) -> str:
    return json.dumps(value)[:64]


def _is_inexact(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) > _EXACT


def _reason(keyword: str, part: dict[str, Any], message: str) -> str:
    """Return the reason for the client, without the library's vocabulary."""
    if keyword in _UNSUPPORTED:
        return ""
    if keyword == "format":
        supported = ", ".join(sorted(_FORMATS - {"unknown"}))
        return f"the format {_json(part['format'])} is not one of {supported}"
    for phrase, reason in _REASONS.items():
        if phrase in message:
            got = ascii(part["$ref"]).replace(_ROOT, "#")[:100] if keyword == "$ref" else ""
            return f"{reason} (got {got})" if got else reason
    return message.removeprefix(f"{UNSATISFIABLE}: ")
