"""Builds the source of a request's grammar, which is as strict as the request and the library allow.

1. The grammar is built from the request as it is. This is sufficient for most requests.
2. If the library rejects it, each JSON schema is checked alone. A strict schema that cannot be enforced is an
   error. Other schemas are relaxed.
3. If the library still rejects the grammar, functions that are not strict can be called with any object.
4. Objects are closed (`closed_schema`), unless the library rejects the grammar then. This is the last step,
   because closing can hide that the schemas of a ``oneOf`` overlap.

The result depends only on the request and the version of the library, so that a worker that resumes an output
uses the same grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llava_wire.messages.sampling_params import Grammar

from llava_worker.engine.structured_output.closed_schema import closed_schema
from llava_worker.engine.structured_output.schema_support import (
    UNSATISFIABLE,
    find_fault,
    has_ignored_keyword,
    relaxed_schema,
)
from llava_worker.engine.structured_output.to_lark import schema_source, to_lark
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar

__all__ = ["NO_MATCH", "build_source"]

NO_MATCH = "no text matches it"  # the start of the error message for a grammar that never completes

_ANY_ARGUMENTS = {"type": "object"}


class _Part(NamedTuple):
    """A JSON schema in a grammar. ``holder[key]`` contains the schema."""

    holder: dict[str, Any]
    key: str
    is_strict: bool
    param: str
    function: str | None

    @property
    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = self.holder[self.key]
        return schema


def build_source(grammar: Grammar, find_error: Callable[[str], str], *, begins_with_space: bool) -> str:
    """Return the source of the grammar in Lark. Raises UnsupportedGrammar if it cannot be enforced.

    ``find_error`` returns the library's error message for a source, or "" if it is valid.
    """
    content = _content(grammar)
    parts = list(_parts(content, grammar))

    def source() -> str:
        text = _text(content, grammar)
        return to_lark(grammar.kind, text, begins_with_space=begins_with_space)

    def closed() -> str:
        opened = source()
        for part in parts:
            part.holder[part.key] = closed_schema(part.schema)
        text = source()
        return opened if text != opened and find_error(text) else text

    exact = source()
    is_exact = not any(has_ignored_keyword(part.schema) for part in parts)
    error = find_error(exact) if is_exact else "some keywords are not supported"
    if not error:
        return closed()
    for part in parts:
        part.holder[part.key] = _enforceable(part, lambda schema: find_error(schema_source(schema)))
    error = find_error(source())
    loose = [part for part in parts if part.function is not None and not part.is_strict]
    if error and loose:
        for part in loose:
            part.holder[part.key] = _ANY_ARGUMENTS
        error = find_error(source())
    if error:
        raise UnsupportedGrammar(error)
    return closed()


def _content(grammar: Grammar) -> Any:
    """Return the decoded text of the grammar, with all JSON schemas decoded."""
    if grammar.kind not in ("json_schema", "tools"):
        return grammar.text
    content = json.loads(grammar.text)
    if grammar.kind == "json_schema":
        return {"schema": content}
    response = content.get("response")
    if response and response["kind"] == "json_schema":
        response["schema"] = json.loads(response["text"])
    return content


def _text(content: Any, grammar: Grammar) -> str:
    """Return the text of a grammar with this content, the inverse of `_content`."""
    if grammar.kind not in ("json_schema", "tools"):
        return grammar.text
    if grammar.kind == "json_schema":
        return json.dumps(content["schema"])
    response = content.get("response")
    if response and "schema" in response:
        response["text"] = json.dumps(response["schema"])
    return json.dumps(content)


def _parts(content: Any, grammar: Grammar) -> Iterator[_Part]:
    if grammar.kind == "json_schema":
        yield _Part(content, "schema", grammar.is_strict, grammar.param, None)
    if grammar.kind == "tools":
        for function in content["functions"]:
            is_strict, param = function.get("is_strict", True), function.get("param", "")
            yield _Part(function, "parameters", is_strict, param, function["name"])
        response = content.get("response")
        if response and "schema" in response:
            is_strict, param = response.get("is_strict", True), response.get("param", "")
            yield _Part(response, "schema", is_strict, param, None)


def _enforceable(part: _Part, find_error: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Return the schema, relaxed if necessary and allowed. Raises UnsupportedGrammar."""
    # A schema with a keyword that the library ignores is not given to it, because some crash the library.
    is_known = not has_ignored_keyword(part.schema)
    error = find_error(part.schema) if is_known else ""
    if is_known and not error:
        return part.schema
    is_contradictory = error.startswith((UNSATISFIABLE, NO_MATCH))
    if part.is_strict or (part.function is None and is_contradictory):
        fault = find_fault(part.schema, find_error)
        remedy = "; remove it, or set strict to false if the API allows it" if part.is_strict else ""
        owner = f"JSON schema of the function {part.function!r}" if part.function else "JSON schema"
        raise UnsupportedGrammar(f"{fault or error}{remedy}", param=part.param, owner=owner)
    relaxed = relaxed_schema(part.schema, find_error)
    if part.function is None:
        if relaxed is None:
            raise UnsupportedGrammar(
                f"too many parts of it are not supported, for example {find_fault(part.schema, find_error)}",
                param=part.param,
                owner="JSON schema",
            )
        return relaxed
    arguments = {**_ANY_ARGUMENTS, **(relaxed or {})}
    return _ANY_ARGUMENTS if find_error(arguments) else arguments
