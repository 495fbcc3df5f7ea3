"""Translates a request's grammar to Lark, the language of the grammar library. Text only, without the
library.

White space in JSON is at most one space, or a line break and an indentation: models that may write any
amount sometimes never stop. All keywords of a schema are enforced or rejected: the library rejects those it
does not support, and this module those that the library would ignore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from llava_wire.messages.sampling_params import GrammarKind

__all__ = ["UnsupportedGrammar", "to_lark"]

_WHITE_SPACE = r" |\r?\n[ \t]{0,32}"
_OPTIONS = "x-guidance"  # where the library looks for options in a schema

# Of drafts 3 and 4; the library takes them for annotations.
_OLD_KEYWORDS = ("extends", "disallow", "divisibleBy")
_MAX_CALLS = 16  # of one answer: small models call and call
_EXACT = 2**53  # JSON's integers are exact up to here

_PART = re.compile(r"\\.|.", re.DOTALL)  # of a regular expression: a character, escaped or not
# Lark reads a pattern up to a slash or the line's end. \d means 0 to 9, as in JSON schemas' expressions.
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
    """A grammar that cannot be enforced."""

    def client_message(self, kind: GrammarKind) -> str:
        """The message for the sender of a grammar of this ``kind``."""
        what = "the JSON schema" if kind.startswith("json") else f"the {kind}"
        return f"{what} cannot be kept to: {self}"


def to_lark(kind: GrammarKind, text: str, *, begins_with_space: bool = False) -> str:
    """``text`` is the schema as JSON, the expression, or the choices as a JSON list of strings; no matter for
    ``json_object``; for ``tools`` as ``Grammar`` of the wire says. ``begins_with_space``: the detokenizer
    takes a space from the beginning of a text, so the grammar puts one there. Raises UnsupportedGrammar.
    """
    start = 'start: " " answer' if begins_with_space else "start: answer"
    rules = _tool_rules(text) if kind == "tools" else f"answer: {_rule(kind, text)}"
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
    """Text that does not begin as a call does, where the choice is free, or calls, each of one function."""
    wanted = json.loads(text)
    calls = f'call ("\\n" call){{0,{_MAX_CALLS - 1}}}' if wanted["is_parallel"] else "call"
    names = [f"f{index}" for index in range(len(wanted["functions"]))]
    rules = [
        f"answer: TEXT? | {calls}" if wanted["choice"] == "auto" else f"answer: {calls}",
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
    """This schema and those within it. Not what stands at a place where no schema belongs."""
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
            raise UnsupportedGrammar(f"{keyword} is true or false, as in draft 4: give the bound itself")
    named = schema.get("enum") if isinstance(schema.get("enum"), list) else []
    for value in (schema.get("const"), *cast("list[Any]", named)):
        if isinstance(value, int | float) and abs(value) > _EXACT:
            raise UnsupportedGrammar(
                f"const or enum has the number {value}: beyond 2**53 none is exact in JSON"
            )


def _regex(pattern: str) -> str:
    """Between Lark's slashes. The whole answer is matched, so anchors at its ends say nothing new."""
    parts = _PART.findall(pattern.removeprefix("^"))
    if parts and parts[-1] == "\\":
        raise UnsupportedGrammar("the regular expression ends with a backslash")
    if parts and parts[-1] == "$":
        parts.pop()
    return "".join(_PLAIN.get(part, part) for part in parts)


def _literal(text: str) -> str:
    return "".join(letter if letter.isalnum() else f"\\x{{{ord(letter):x}}}" for letter in text)
