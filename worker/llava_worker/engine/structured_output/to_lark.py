"""Translates the grammar of a request to Lark, the language that the grammar library uses.

This module does not use the library itself. Each run of whitespace in JSON is limited to a single space or to
a line break with indentation, because models sometimes generate endless whitespace if the grammar allows it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, cast

from llava_wire.messages.sampling_params import GrammarKind

from llava_worker.engine.structured_output.gbnf import parse_gbnf
from llava_worker.engine.structured_output.schema_support import OPTIONS
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

__all__ = ["schema_source", "to_lark"]

_WHITE_SPACE = r" |\r?\n[ \t]{0,32}"
_MAX_CALLS = 16  # tool calls per response; small models tend to repeat calls endlessly
_CALL_BEGIN = "<tool_call>"
_TEXT = "(?s:.+)"

_PART = re.compile(r"\\.|.", re.DOTALL)  # a character of a regular expression, escaped or not
# In Lark, a slash or a line break ends a pattern. \d matches only 0 to 9, as in JSON Schema.
_PLAIN = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r", r"\d": "[0-9]", r"\D": "[^0-9]"}


class _Format(NamedTuple):
    """A grammar without tools: either a regular expression or rules, of which the first is the start rule."""

    regex: str = ""
    rules: tuple[str, ...] = ()


def to_lark(kind: GrammarKind, text: str, *, begins_with_space: bool = False) -> str:
    """Return the grammar in Lark syntax. Raises UnsupportedGrammar if it is not valid.

    For ``kind`` and ``text``, see ``Grammar`` in ``llava_wire``. If ``begins_with_space`` is true, the
    grammar requires a space at the start of the output. This is necessary if the detokenizer removes a
    leading space.
    """
    if kind == "tools":
        rules = _tool_rules(json.loads(text))
    else:
        format_ = _format(kind, text)
        rules = [f"output: /{format_.regex}/"] if format_.regex else _renamed("output", format_.rules)
    start = 'start: " " output' if begins_with_space else "start: output"
    return "\n".join([start, *rules]) + "\n"


def schema_source(schema: dict[str, Any]) -> str:
    """Return a grammar for a JSON schema alone."""
    return f"start: {_json_rule(schema)}\n"


def _format(kind: GrammarKind, text: str) -> _Format:
    if kind == "regex":
        return _Format(regex=_regex(text))
    if kind == "choice":
        choices = cast("list[str]", json.loads(text))
        return _Format(regex="|".join(_literal(choice) for choice in choices))
    if kind == "gbnf":
        grammar = parse_gbnf(text)
        regex = grammar.regex()
        return _Format(regex=regex) if regex else _Format(rules=tuple(grammar.rules()))
    schema = json.loads(text) if kind == "json_schema" else {"type": "object"}
    return _Format(rules=(f"json: {_json_rule(schema)}",))


def _tool_rules(wanted: dict[str, Any]) -> list[str]:
    """Return the rules for tool calls.

    Each call invokes exactly one function. If the tool choice is "auto", the output can instead be a response
    in the wanted format. A response that is a regular expression cannot start with ``<tool_call>``.
    """
    calls = f'call ("\\n" call){{0,{_MAX_CALLS - 1}}}' if wanted["is_parallel"] else "call"
    names = [f"f{index}" for index in range(len(wanted["functions"]))]
    begin = f'"{_CALL_BEGIN}"'
    rules = [f"output: {calls}"]
    if wanted["choice"] == "auto":
        response = wanted.get("response")
        format_ = _format(response["kind"], response.get("text", "")) if response else _Format(regex=_TEXT)
        rules = [f"output: {'response' if response else 'response?'} | {calls}"]
        if format_.regex:
            rules += ["response: RESPONSE", f"RESPONSE: /{format_.regex}/ & ~/(?s:{_CALL_BEGIN}.*)/"]
        else:
            rules += _renamed("response", format_.rules)
        if response and response["kind"] == "gbnf" and not format_.regex:
            # The rules match single characters, so the library must not match this string as a whole.
            begin = " ".join(f'"{letter}"' for letter in _CALL_BEGIN)
    rules.append(f'call: {begin} ({" | ".join(names)}) "</tool_call>"')
    for name, function in zip(names, wanted["functions"], strict=True):
        opening = json.dumps(f'{{"name": {json.dumps(function["name"])}, "arguments": ')
        rules.append(f'{name}: {opening} {_json_rule(function["parameters"])} "}}"')
    return rules


def _renamed(name: str, rules: tuple[str, ...]) -> list[str]:
    """Return the rules, preceded by a rule with this name that refers to the first of them."""
    first = rules[0].partition(":")[0]
    return [f"{name}: {first}", *rules]


def _json_rule(schema: dict[str, Any]) -> str:
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": False}
    return f"%json {json.dumps({**schema, OPTIONS: options})}"


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
