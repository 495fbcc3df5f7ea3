"""Schemas are relaxed where they cannot be enforced, or rejected with the location of the keyword."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.engine.structured_output.sandbox import GrammarSandbox
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from pydantic import BaseModel, Field, SecretStr

from tests.worker.engine.structured_output.grammar_kit import EOS_ID, Vocabulary, allowed


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: list[Dog] = []


class Order(BaseModel):
    """A model with types whose JSON schemas contain uniqueItems, look-ahead, propertyNames and oneOf."""

    tags: set[str]
    price: Decimal
    when: datetime.datetime
    lasts: datetime.timedelta | None
    counts: dict[Annotated[str, Field(min_length=2)], int]
    by_code: dict[Annotated[str, Field(pattern="^[A-Z]{2}$")], bool]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, str]
    color: Color
    file: Path
    password: SecretStr


ORDER = {
    "tags": ["a", "b"],
    "price": "12.50",
    "when": "2026-01-31T12:00:00Z",
    "lasts": None,
    "counts": {"ab": 1},
    "by_code": {"DE": True},
    "pet": {"kind": "dog", "friends": [{"kind": "dog"}]},
    "pair": [1, "x"],
    "color": "red",
    "file": "/a/b",
    "password": "p",
}

# What z.toJSONSchema of zod 4 returns for z.record(z.string(), z.number().int()).
ZOD_RECORD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "r": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {
                "type": "integer",
                "minimum": -9007199254740991,
                "maximum": 9007199254740991,
            },
        }
    },
    "required": ["r"],
    "additionalProperties": False,
}
# A form that zod-to-json-schema returns: references to properties instead of definitions.
ZOD_REFERENCE = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "from": {"type": "object", "properties": {"at": {"type": "string", "format": "iso-date"}}},
        "to": {"$ref": "#/properties/from"},
        "again": {"$ref": "#"},
    },
    "additionalProperties": False,
}

# Each schema, with values that it allows and values that the relaxed schema still rejects.
SCHEMAS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (
        Order.model_json_schema(),
        [ORDER, ORDER | {"price": 3, "pet": {"kind": "cat", "lives": 9}, "tags": []}],
        [ORDER | {"color": "green"}, ORDER | {"when": "today"}, ORDER | {"pair": ["x", 1]}, {}],
    ),
    (ZOD_RECORD, [{"r": {"a": 1}}, {"r": {}}], [{"r": {"a": "b"}}, {}, {"r": {}, "s": 1}]),
    (
        ZOD_REFERENCE,
        [{"from": {"at": "x"}, "to": {"at": "y"}, "again": {"to": {}}}],
        [{"to": {"at": 5}}, {"again": {"to": 5}}],
    ),
    # "not" and "if" are removed with everything in them.
    (
        {"properties": {"a": {"type": "integer", "not": {"const": 3}}, "b": {"if": {}, "else": {}}}},
        [{"a": 4, "b": 5}, {"b": None}],
        [{"a": "x"}],
    ),
    # A value may match several schemas of a relaxed oneOf, and the other keywords still apply.
    (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "integer"}}},
        [{"a": 1}, {"b": "x"}],
        [{"a": "x"}, {}],
    ),
    # Names that match a removed pattern do not become additional properties.
    (
        {
            "patternProperties": {"^(?!x)": {"type": "integer"}, "y$": {"minimum": 3}},
            "properties": {"z": {"type": "null"}},
            "additionalProperties": False,
        },
        [{"z": None, "a": 1}, {"y": 4}],
        [{"z": 1}],
    ),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, [{"a": 1}, {}], [{"c": 2}]),
    # Removing "properties" would make "additionalProperties" stricter.
    ({"properties": [], "additionalProperties": False}, [{"a": 1}], []),
    ({"properties": {"a": {"items": [{"type": "null"}], "contains": {}}}}, [{"a": [None, 1]}], [{"a": [1]}]),
    ({"properties": {"a": {"minimum": 3, "exclusiveMinimum": True}}}, [{"a": 4}, {"a": "x"}], [{"a": 3}]),
    ({"properties": {"a": {"enum": [2**63, 5]}, "b": {"type": "date"}}}, [{"a": 5, "b": "x"}], []),
    ({"properties": {"a": {"$ref": "https://example.com/x"}, "b": {"type": "null"}}}, [{"a": 5}], [{"b": 5}]),
    ({"properties": {"a": {"type": "string"}}, "required": True}, [{"a": "x"}], [{"a": 5}]),
    (
        {"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["a"]},
        [{"a": 3}],
        [{}, {"a": "x"}],
    ),
    ({"$ref": "#"}, [{"a": 5}], []),
    ({"properties": {"a/b~c": {"uniqueItems": True, "type": "array"}}}, [{"a/b~c": []}], [{"a/b~c": 5}]),
    (
        {"$id": "https://example.com/s", "properties": {"a": {"$ref": "https://example.com/s#/$defs/t"}},
         "$defs": {"t": {"type": "string", "format": "password"}}},
        [{"a": "x"}],
        [{"a": 5}],
    ),
]  # fmt: skip


def tools(schema: dict[str, Any], *, is_strict: bool) -> Grammar:
    parameters = {"type": "object", **schema}
    function = {
        "name": "f",
        "parameters": parameters,
        "is_strict": is_strict,
        "param": "tools[7].function.parameters",
    }
    return Grammar("tools", json.dumps({"choice": "required", "is_parallel": False, "functions": [function]}))


def call(arguments: Any) -> str:
    return f'<tool_call>{{"name": "f", "arguments": {json.dumps(arguments)}}}</tool_call>'


def test_a_schema_that_is_not_strict_allows_what_it_allowed_and_enforces_the_rest(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    for schema, accepted, rejected in SCHEMAS:
        grammar = grammars.compile(tools(schema, is_strict=False))
        for value in (*accepted, *rejected):
            matcher = grammar.start()
            matcher.advance(vocabulary.ids(f" {call(value)}"))
            is_accepted = matcher.error is None and EOS_ID in allowed(matcher)
            assert is_accepted == (value in accepted), (schema, value)


def test_every_schema_above_is_rejected_if_it_is_strict(grammars: GrammarCache) -> None:
    for schema, _, _ in SCHEMAS:
        with pytest.raises(UnsupportedGrammar) as raised:
            grammars.compile(tools(schema, is_strict=True))
        assert raised.value.param == "tools[7].function.parameters", schema
        message = raised.value.client_message("tools")
        assert message.startswith("The JSON schema of the function 'f' cannot be enforced: the "), message
        internals = ("Lark", "lexeme", "Unimplemented", "x-guidance", "coerce", "$defs/root", "Regex")
        assert not any(word in message for word in internals), message


FAULTS: list[tuple[dict[str, Any], str]] = [
    (Order.model_json_schema(), "the keyword 'uniqueItems' at /properties/tags is not supported"),
    (ZOD_RECORD, "the keyword 'propertyNames' at /properties/r is not supported"),
    (ZOD_REFERENCE, "the keyword 'format' at /properties/from/properties/at is not supported: the format"),
    ({"properties": {"a/b": {"items": {"not": {}}}}}, "the keyword 'not' at /properties/a~1b/items is not"),
    ({"$ref": "#/$defs/t", "$defs": {"t": {"minContains": 1}}}, "the keyword 'minContains' at /$defs/t is"),
    (
        {"properties": {"a": {"$ref": "#/$defs/t"}}},
        "/properties/a is not supported: the reference refers to a schema that does not exist (got '#/$",
    ),
    ({"properties": {"a": {"pattern": r"(?<=a)b", "type": "string"}}}, "look-behind"),
    ({"properties": {"a": {"pattern": r"\bword", "type": "string"}}}, r"word boundaries (\b and \B)"),
    ({"minProperties": 2, "properties": {"a": {}}}, "'minProperties' at the top level is not supported: the"),
    ({"oneOf": [{"required": ["a"]}, {}]}, "'oneOf' at the top level is not supported: its schemas overlap"),
    (
        {"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["a"]},
        "the schema at /properties/a allows no value or is not supported: minimum (5) is greater than",
    ),
]  # fmt: skip


def test_an_error_names_the_keyword_and_its_location(grammars: GrammarCache) -> None:
    for schema, problem in FAULTS:
        with pytest.raises(UnsupportedGrammar) as raised:
            grammars.compile(tools(schema, is_strict=True))
        assert problem in str(raised.value)


def test_a_response_format_is_relaxed_but_never_contradictory(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True})
    matcher = grammars.compile(Grammar("json_schema", schema, is_strict=False)).start()
    matcher.advance(vocabulary.ids(" [1, 1]"))
    assert EOS_ID in allowed(matcher)
    with pytest.raises(UnsupportedGrammar, match="allows no value"):
        grammars.compile(Grammar("json_schema", '{"allOf":[{"type":"string"},{"type":"null"}]}', False))


def test_the_grammar_of_a_request_is_always_the_same(vocabulary: Vocabulary) -> None:
    """A worker that resumes an output must build the grammar that the first worker built."""

    def build() -> list[str]:
        sandbox = GrammarSandbox(vocabulary.tokens, [EOS_ID], begins_with_space=False, cpu_s=60.0)
        sources = [sandbox.build(tools(schema, is_strict=False)) for schema, _, _ in SCHEMAS]
        sandbox.close()
        return sources

    assert build() == build()


def test_many_tools_with_long_schemas_are_accepted(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    properties = {f"field_{index}": {"type": "string", "enum": ["x" * 60]} for index in range(32)}
    functions = [
        {"name": f"f{index}", "parameters": {"type": "object", "properties": properties}, "is_strict": False}
        for index in range(70)
    ]
    content = {"choice": "auto", "is_parallel": True, "functions": functions}
    grammar = Grammar("tools", json.dumps(content))
    assert len(grammar.text) > 200_000
    matcher = grammars.compile(grammar).start()
    matcher.advance(vocabulary.ids(' <tool_call>{"name": "f69", "arguments": {}}</tool_call>'))
    assert EOS_ID in allowed(matcher)
