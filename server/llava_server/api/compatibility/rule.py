"""Rules for request fields that exist in other servers' APIs but have no effect or are not supported here.

A field that the request model defines needs no rule. A field without a rule that the model does not define is
ignored, because some clients send extra fields. docs/reference/request-fields.md lists all rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_server.errors import ApiError

__all__ = ["Neutral", "Only", "Rule", "Rules", "Unsupported", "steps_of"]

_STEP = re.compile(r"([^.\[\]]+)(?:\[(\w+)=([^\]]+)\])?")
_EMPTY: tuple[Any, ...] = (None, "", [], {})  # clients send these to leave a field unset
_SHOWN = 60  # maximum number of characters of a value shown in an error message


@dataclass(frozen=True)
class Neutral:
    """A field that cannot change the output. Any value is accepted. ``reason`` is for the documentation."""

    reason: str

    def check(self, path: str, value: Any) -> None:
        """Accept the value."""


@dataclass(frozen=True)
class Unsupported:
    """A field that would change the output. The error message includes ``remedy``.

    null, empty values and ``neutral`` values are accepted. A neutral value requests the default behavior. If
    ``is_enabled_by_empty`` is true, an empty value enables the feature, so only null is accepted.
    """

    remedy: str
    neutral: tuple[Any, ...] = ()
    is_enabled_by_empty: bool = False

    def check(self, path: str, value: Any) -> None:
        """Raise ApiError (400) unless the value is neutral."""
        unset = (None,) if self.is_enabled_by_empty else _EMPTY
        if any(_is_same(value, neutral) for neutral in (*unset, *self.neutral)):
            return
        accepted = " or ".join(map(json.dumps, self.neutral))
        exception = f", except for the value {accepted}" if accepted else ""
        raise ApiError(
            "unsupported_parameter", f"{path} is not supported{exception}. {self.remedy}", param=path
        )


@dataclass(frozen=True)
class Only:
    """A field that the request model defines, but with fewer values than other servers."""

    remedy: str
    values: tuple[Any, ...]

    def check(self, path: str, value: Any) -> None:
        """Raise ApiError (400) for a string that is not one of the values. The model checks other types."""
        if isinstance(value, str) and value not in self.values:
            accepted = " or ".join(map(repr, self.values))
            message = f"{path} is {value[:_SHOWN]!a}, but only {accepted} is supported. {self.remedy}"
            raise ApiError("unsupported_parameter", message, param=path)


Rule = Neutral | Unsupported | Only


class Rules:
    """The rules for the body of one request, keyed by path.

    ``a.b`` is the field ``b`` of the object ``a``, or of each object in the list ``a``. ``a[type=x].b``
    applies only to objects whose ``type`` is ``x`` or absent. ``a.*`` applies to fields of ``a`` that have
    no rule. ``a.**.b`` means the field ``b`` of all objects in ``a``, at any depth. Such a rule must be
    neutral, because these objects can contain a client's data, such as the arguments of a call.
    """

    def __init__(self, *parts: Mapping[str, Rule]) -> None:
        self.by_path: dict[str, Rule] = {path: rule for part in parts for path, rule in part.items()}
        self._root = _Node()
        self._deep: list[tuple[list[str], Neutral]] = []  # the names before and after "**"
        for path, rule in self.by_path.items():
            if "**" not in path:
                self._root.at(steps_of(path)).rule = rule
            elif isinstance(rule, Neutral):
                self._deep.append((path.split(".**."), rule))
            else:
                raise ValueError(f"the rule for {path} must be neutral")

    def check(self, body: Any) -> None:
        """Raise ApiError (400) for the first field in a parsed JSON body that a rule rejects."""
        self._root.check(body, "")

    def covering(self, path: str) -> Rule | None:
        """Return the rule for a field or for an object that contains it, or None."""
        nodes = [self._root]
        for step in steps_of(path):
            nodes = [child for node in nodes for child in node.matching(*step)]
            rule = next((node.rule for node in nodes if isinstance(node.rule, Neutral | Unsupported)), None)
            if rule is not None:
                return rule
        names = [name for name, _ in steps_of(path)]
        for (owner, field_name), rule in self._deep:
            if names[0] == owner and field_name in names[1:]:
                return rule
        return next((child.rule for node in nodes for child in node.fields.get("*", ())), None)


@dataclass
class _Node:
    """The rules for a field and for the fields of its objects."""

    tag: tuple[str, str] | None = None  # the name and the value of the field that selects the objects
    rule: Rule | None = None
    fields: dict[str, list[_Node]] = field(default_factory=dict)

    def at(self, steps: list[tuple[str, tuple[str, str] | None]]) -> _Node:
        """Return the node at a path, which is created if it does not exist."""
        if not steps:
            return self
        (name, tag), *rest = steps
        nodes = self.fields.setdefault(name, [])
        node = next((each for each in nodes if each.tag == tag), None)
        if node is None:
            node = _Node(tag)
            nodes.append(node)
        return node.at(rest)

    def matching(self, name: str, tag: tuple[str, str] | None) -> Iterator[_Node]:
        """Yield the nodes for a field. Without a tag, all objects in the field are meant."""
        for node in self.fields.get(name) or self.fields.get("*") or ():
            if None in (tag, node.tag) or tag == node.tag:
                yield node

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict | list):
                    self.check(item, f"{path}[{index}]")
        elif isinstance(value, dict) and self._selects(value):
            for name in list(value) if "*" in self.fields else value.keys() & self.fields:
                self._check_field(name, value[name], f"{path}.{name}" if path else name)

    def _check_field(self, name: str, value: Any, path: str) -> None:
        for node in self.matching(name, None):
            if node.rule is not None:
                node.rule.check(path, value)
            if node.fields:
                node.check(value, path)

    def _selects(self, value: dict[str, Any]) -> bool:
        return self.tag is None or value.get(self.tag[0], self.tag[1]) == self.tag[1]


def steps_of(path: str) -> list[tuple[str, tuple[str, str] | None]]:
    """Split a path into steps: the name of a field, and the tag in brackets if there is one."""
    return [(name, (key, value) if key else None) for name, key, value in _STEP.findall(path)]


def _is_same(value: Any, neutral: Any) -> bool:
    """Compare two values as JSON: 1 and 1.0 are equal, but 1 and true are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
