"""Translates the grammar of a request to Lark, the language that the grammar library uses.

This module does not use the library itself. Each run of whitespace in JSON is limited to a single space or to
a line break with indentation, because models sometimes generate endless whitespace if the grammar allows it.
Every keyword of a schema is either enforced or rejected: the library rejects keywords that it does not
support, and this module rejects those that the library would ignore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from llava_wire.messages.sampling_params import GrammarKind

__all__ = ["UnsupportedGrammar", "to_lark"]

_WHITE_SPACE = r" |\r?\n[ \t]{0,32}"
_OPTIONS = "x-guidance"  # a schema keyword that contains options for the library

# Keywords from JSON Schema drafts 3 and 4, which the library would treat as annotations and ignore.
_OLD_KEYWORDS = ("extends", "disallow", "divisibleBy")
_MAX_CALLS = 16  # tool calls per response; small models tend to repeat calls endlessly
_EXACT = 2**53  # JSON integers are exact up to this value

_PART = re.compile(r"\\.|.", re.DOTALL)  # a character of a regular expression, escaped or not
# In Lark, a slash or a line break ends a pattern. \d matches only 0 to 9, as in JSON Schema.
_PLAIN = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r", r"\d": "[0-9]", r"\D": "[^0-9]"}

_SCHEMA_KEYWORDS = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LIST_KEYWORDS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED_KEYWORDS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


class UnsupportedGrammar(ValueError):
    """Raised for a grammar that cannot be enforced."""

    def client_message(self, kind: GrammarKind) -> str:
        """Return the error message for the client. ``kind`` is the kind of grammar that the client sent."""
        name = "JSON schema" if kind.startswith("json") else kind
        return f"The {name} cannot be enforced: {self}."


def to_lark(kind: GrammarKind, text: str, *, begins_with_space: bool = False) -> str:
    """Return the grammar in Lark syntax. Raises UnsupportedGrammar if it cannot be enforced.

    ``text`` is the schema as JSON, the regular expression, or the choices as a JSON list of strings. For
    ``json_object``, it is ignored. For ``tools``, see ``Grammar`` in ``llava_wire``. If ``begins_with_space``
    is true, the grammar requires a space at the start of the output. This is necessary if the detokenizer
    removes a leading space.
    """
    start = 'start: " " output' if begins_with_space else "start: output"
    rules = _tool_rules(text) if kind == "tools" else f"output: {_rule(kind, text)}"
    return f"{start}\n{rules}\n"


def _rule(kind: GrammarKind, text: str) -> str:
    if kind == "regex":
        return f"/{_regex(text)}/"
    if kind == "choice":
        choices = cast("list[str]", json.loads(text))
        return f"/{'|'.join(_literal(choice) for choice in choices)}/"
    schema = json.loads(text) if kind == "json_schema" else {"type": "object"}
    for part in _schemas(schema):
        _check_keywords(part)
    return f"%json {json.dumps(_with_options(schema))}"


def _tool_rules(text: str) -> str:
    """Return the rules for tool calls.

    Each call invokes exactly one function. If the tool choice is "auto", the output can instead be text that
    does not start with ``<tool_call>``.
    """
    wanted = json.loads(text)
    calls = f'call ("\\n" call){{0,{_MAX_CALLS - 1}}}' if wanted["is_parallel"] else "call"
    names = [f"f{index}" for index in range(len(wanted["functions"]))]
    rules = [
        f"output: TEXT? | {calls}" if wanted["choice"] == "auto" else f"output: {calls}",
        f'call: "<tool_call>" ({" | ".join(names)}) "</tool_call>"',
        "TEXT: /(?s:.+)/ & ~/(?s:<tool_call>.*)/",
    ]
    for name, function in zip(names, wanted["functions"], strict=True):
        opening = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
        rules.append(f'{name}: {opening} {_rule("json_schema", json.dumps(function["parameters"]))} "}}"')
    return "\n".join(rules)


def _with_options(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, _OPTIONS: {"whitespace_pattern": _WHITE_SPACE, "lenient": False}}


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield this schema and all schemas nested in it. Values that are not schemas are skipped."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        yield part
        waiting += [part[keyword] for keyword in _SCHEMA_KEYWORDS if keyword in part]
        for keyword in _LIST_KEYWORDS:
            waiting += part[keyword] if isinstance(part.get(keyword), list) else []
        for keyword in _NAMED_KEYWORDS:
            waiting += part[keyword].values() if isinstance(part.get(keyword), dict) else []


def _check_keywords(schema: dict[str, Any]) -> None:
    for keyword in (*_OLD_KEYWORDS, _OPTIONS):
        if keyword in schema:
            raise UnsupportedGrammar(f"the keyword {keyword!r} is not supported")
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(keyword), bool):
            raise UnsupportedGrammar(f"{keyword} is a boolean, as in draft 4; use a numeric limit instead")
    named = schema.get("enum") if isinstance(schema.get("enum"), list) else []
    for value in (schema.get("const"), *cast("list[Any]", named)):
        if isinstance(value, int | float) and abs(value) > _EXACT:
            raise UnsupportedGrammar(
                f"const or enum contains the number {value}; JSON numbers beyond 2**53 are not exact"
            )


def _regex(pattern: str) -> str:
    """Return the pattern in the form that Lark requires between slashes.

    Anchors at the start and the end are removed, because the pattern always has to match the whole output.
    """
    parts = _PART.findall(pattern.removeprefix("^"))
    if parts and parts[-1] == "\\":
        raise UnsupportedGrammar("the regular expression ends with a backslash")
    if parts and parts[-1] == "$":
        parts.pop()
    return "".join(_PLAIN.get(part, part) for part in parts)


def _literal(text: str) -> str:
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)
