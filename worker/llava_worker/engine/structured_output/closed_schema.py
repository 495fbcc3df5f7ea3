"""Closes the objects of a JSON schema, so that they contain only the properties that the schema lists.

JSON Schema allows any other property unless ``additionalProperties`` is false. Most schemas omit this keyword
although no other property is expected, and a model can then add properties until it reaches ``max_tokens``.
llama.cpp, Outlines and xgrammar (in strict mode) close objects for this reason. A closed schema is stricter,
so every output that it allows conforms to the original schema.

An object is closed with ``additionalProperties: false``. Several schemas may describe one object: a schema,
those that it includes with ``$ref`` or ``allOf``, and a branch of its ``anyOf`` or ``oneOf``. They are called
the *members* of the object. Only one member is closed, and the properties of the others are added to it.

An object stays open if a member has a keyword in `_OPEN`, no member has ``properties``, or ``minProperties``
is larger than the number of listed properties. It also stays open if its members cannot be determined.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llava_worker.engine.structured_output.schema_tree import at, nested, resolve, subschemas

__all__ = ["closed_schema"]

_Part = dict[str, Any]
_Members = tuple[_Part, ...]

_CHOICES = ("anyOf", "oneOf")
# Keywords that decide which properties an object can have, beyond those that are listed.
_OPEN = frozenset(
    {
        "$dynamicRef", "$recursiveRef", "additionalProperties", "const", "dependencies",
        "dependentSchemas", "else", "enum", "extends", "if", "not", "patternProperties",
        "propertyNames", "then", "unevaluatedProperties",
    }
)  # fmt: skip
_LISTING = frozenset({"minProperties", "properties", "required"})
_ARRAY = frozenset({"additionalItems", "contains", "items", "prefixItems", "unevaluatedItems"})
_RELEVANT = _OPEN | _LISTING | _ARRAY


def closed_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the schema in which objects are closed. The schema must be valid."""
    root = copy.deepcopy(schema)
    if _has_other_references(root):
        return root
    _Closer(root).close()
    return root


def _has_other_references(root: _Part) -> bool:
    """Return whether a reference cannot be followed, so that it is not known which schemas are combined."""
    for path, part in subschemas(root):
        if path and isinstance(part.get("$id"), str):
            return True
        if "$ref" in part and _target(part, root) is None:
            return True
    return False


def _target(part: _Part, root: _Part) -> _Part | None:
    reference = part.get("$ref")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    path = resolve(reference[1:], root)
    return None if path is None else at(root, path)


class _Closer:
    """Determines which parts of a schema to close. It visits the schema of each value only once."""

    def __init__(self, root: _Part) -> None:
        self._root = root
        self._waiting: list[tuple[_Part, _Members]] = [(root, ())]
        # By ID: parts to close with the names of all properties, and parts that must not be changed.
        self._closed: dict[int, tuple[_Part, dict[str, None]]] = {}
        self._unchanged: set[int] = set()

    def close(self) -> None:
        """Close all objects that can be closed."""
        visited: set[tuple[int, ...]] = set()
        while self._waiting:
            part, outer = self._waiting.pop()
            key = (id(part), *map(id, outer))
            if key not in visited:
                visited.add(key)
                self._visit(part, outer)
        for key_, (part, names) in self._closed.items():
            if key_ not in self._unchanged:
                own = part.get("properties", {})
                # The values of the added properties are described by other members.
                added = {name: True for name in names if name not in own}
                part["properties"] = {**own, **added}
                part["additionalProperties"] = False

    def _visit(self, part: _Part, outer: _Members) -> None:
        """Visit a part. ``outer`` contains other schemas that apply to the same value."""
        included = list(self._included(part))
        choices = [keyword for keyword in _CHOICES if keyword in part]
        if len(included) == 1 and not (choices or outer or part.keys() & _RELEVANT):
            self._waiting.append((included[0], ()))  # for example, a reference with a description
            return
        inner = self._conjunction(part)
        if inner is None or len(choices) > 1:
            self._leave_open(part, *outer)
            return
        members = (*outer, *(member for member in inner if member.keys() & _RELEVANT))
        if choices:
            self._waiting += [(branch, members) for branch in _schemas(part[choices[0]])]
            return
        self._visit_values(members)
        self._visit_object(part, members)

    def _included(self, part: _Part) -> Iterator[_Part]:
        """Yield the schemas that always apply to the same value as this part."""
        target = _target(part, self._root)
        if target is not None:
            yield target
        yield from _schemas(part.get("allOf"))

    def _conjunction(self, part: _Part) -> list[_Part] | None:
        """Return the part and all schemas that it includes, or None if one of them has alternatives."""
        members = {id(part): part}
        waiting = [part]
        while waiting:
            for member in self._included(waiting.pop(0)):
                if any(keyword in member for keyword in _CHOICES):
                    return None
                if id(member) not in members:
                    members[id(member)] = member
                    waiting.append(member)
        return list(members.values())

    def _visit_object(self, part: _Part, members: _Members) -> None:
        """Close the object that these members describe by changing ``part``, if possible."""
        names = dict.fromkeys(name for member in members for name in _names(member))
        minimum = max((member.get("minProperties", 0) for member in members), default=0)
        is_closed = (
            any("properties" in member for member in members)
            and not any(member.keys() & _OPEN for member in members)
            and minimum <= len(names)
        )
        if is_closed:
            self._closed.setdefault(id(part), (part, {}))[1].update(names)
        self._unchanged.update(
            id(member) for member in (*members, part) if member is not part or not is_closed
        )

    def _visit_values(self, members: _Members) -> None:
        """Visit the values of an object or array. Those that several schemas may describe stay open."""
        lists = Counter(name for member in members for name in member.get("properties", {}))
        is_single = len(members) == 1
        # Patterns and additionalProperties can apply to properties that are also listed.
        is_unclear = (bool(lists) and any("patternProperties" in member for member in members)) or (
            not is_single and any(isinstance(member.get("additionalProperties"), dict) for member in members)
        )
        for member in members:
            for path, child in nested(member):
                if not isinstance(child, dict) or path[0] in ("allOf", *_CHOICES):
                    continue
                is_described_once = lists[path[1]] == 1 if path[0] == "properties" else is_single
                if is_described_once and not is_unclear:
                    self._waiting.append((child, ()))
                else:
                    self._leave_open(child)

    def _leave_open(self, *parts: _Part) -> None:
        """Do not close these parts and the parts that are nested in them."""
        waiting = list(parts)
        visited: set[int] = set()
        while waiting:
            part = waiting.pop()
            if id(part) not in visited:
                visited.add(id(part))
                waiting += [child for _, child in nested(part) if isinstance(child, dict)]
                waiting += self._included(part)
        self._unchanged |= visited


def _schemas(value: Any) -> list[_Part]:
    return [child for child in value if isinstance(child, dict)] if isinstance(value, list) else []


def _names(member: _Part) -> Iterator[str]:
    """Yield the names of the properties that are listed or required."""
    yield from member.get("properties", {})
    yield from member.get("required", [])
