"""Objects contain only the properties that their schema lists, unless the schema says otherwise."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from llava_wire.messages.sampling_params import Grammar
from llava_worker.engine.structured_output.closed_schema import closed_schema
from llava_worker.engine.structured_output.grammar_cache import GrammarCache
from llava_worker.engine.structured_output.unsupported_grammar import UnsupportedGrammar
from pydantic import BaseModel, Field

from tests.worker.engine.structured_output.grammar_kit import (
    EOS_ID,
    Vocabulary,
    accepts,
    allowed,
    is_valid,
    published_schemas,
)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: list[Pet] = []


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Owner(BaseModel):
    """A model with a discriminated union, a recursive definition, and dictionaries."""

    pet: Pet | None = Field(None, description="a reference with a description")
    parent: Owner | None = None
    notes: dict[str, Any] = {}
    cats: dict[str, Cat] = {}


BASE = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
ONE = {"type": "object", "properties": {"a": {"type": "integer"}}}

# Each schema, with values that remain possible and values that conform to the schema but are not generated.
CLOSED: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "object": (ONE, [{}, {"a": 1}], [{"b": 1}, {"a": 1, "b": 1}]),
    "without a type": ({"properties": {"a": {}}}, [{"a": {"x": [1]}}, 5], [{"b": 1}]),
    "no properties": ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
    "nested": (
        {"properties": {"list": {"type": "array", "items": ONE}, "map": {"additionalProperties": ONE}}},
        [{"list": [{"a": 1}, {}], "map": {"x": {"a": 1}}}],
        [{"list": [{"b": 1}]}, {"map": {"x": {"b": 1}}}],
    ),
    "required without a schema": (
        {**ONE, "required": ["b"]},
        [{"b": [None]}, {"a": 1, "b": {"c": 1}}],
        [{"b": 1, "c": 1}],
    ),
    "nullable": ({"anyOf": [ONE, {"type": "null"}], "default": None}, [{"a": 1}, None], [{"b": 1}]),
    "one required": (
        {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1, "c": 1}],
    ),
    "branches with their own properties": (
        {
            "required": ["k"],
            "properties": {"k": {"type": "string"}},
            "anyOf": [{"properties": {"x": ONE}, "required": ["x"]}, {"properties": {"y": {}}}],
        },
        [{"k": "v", "x": {"a": 1}}, {"k": "v", "y": 1}, {"k": "v"}],
        [{"k": "v", "z": 1}, {"k": "v", "y": 1, "x": {}}, {"k": "v", "x": {"b": 1}}],
    ),
    "inheritance": (
        {
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"x": ONE}, "required": ["x"]}],
            "$defs": {"base": BASE},
        },
        [{"id": 1, "x": {"a": 1}}],
        [{"id": 1, "x": {}, "y": 1}, {"id": 1, "x": {"b": 1}}],
    ),
    "a base that is also used alone": (
        {
            "type": "object",
            "properties": {
                "one": {"$ref": "#/$defs/base"},
                "two": {"$ref": "#/$defs/base", "properties": {"x": {}}, "required": ["x"]},
            },
            "$defs": {"base": BASE},
        },
        [{"one": {"id": 1}, "two": {"id": 1, "x": 2}}],
        [{"two": {"id": 1, "x": 2, "y": 3}}],
    ),
    "wrapped reference": (
        {"properties": {"a": {"allOf": [{"$ref": "#/$defs/base"}], "title": "A"}}, "$defs": {"base": BASE}},
        [{"a": {"id": 1}}],
        [{"a": {"id": 1, "x": 1}}],
    ),
    "recursive": (
        {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "type": "object"}}},
        [{"n": {"n": {}}}],
        [{"n": {"m": 1}}, {"m": 1}],
    ),
    "root reference": (
        {"type": "object", "properties": {"n": {"$ref": "#"}}},
        [{"n": {"n": {}}}],
        [{"n": {"m": {}}}],
    ),
    "pydantic": (
        Owner.model_json_schema(),
        [
            {"pet": {"kind": "dog", "friends": [{"kind": "cat", "lives": 9}]}, "parent": {"parent": None}},
            {"notes": {"any": {"thing": 1}}, "cats": {"tom": {"kind": "cat", "lives": 1}}},
        ],
        [
            {"pet": {"kind": "dog", "lives": 9}},
            {"pet": {"kind": "cat", "lives": 9, "name": "Tom"}},
            {"parent": {"other": 1}},
            {"cats": {"tom": {"kind": "cat", "lives": 1, "age": 2}}},
        ],
    ),
}  # fmt: skip

# Each schema, with values that must remain possible.
OPEN: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "any object": ({"type": "object"}, [{"a": {"b": 1}}]),
    "true": ({**ONE, "additionalProperties": True}, [{"a": 1, "b": {"c": 1}}]),
    "a schema": ({**ONE, "additionalProperties": {"type": "string"}}, [{"b": "x"}]),
    "patterns": ({**ONE, "patternProperties": {"^b": {}}}, [{"b": 1}, {"c": 1}]),
    "only required": ({"type": "object", "required": ["a"]}, [{"a": 1, "b": 2}]),
    "minProperties": (
        {"properties": {"a": {}}, "required": ["a"], "minProperties": 2},
        [{"a": 1, "b": 1}],
    ),
    "one property in two schemas": (
        {
            "type": "object",
            "allOf": [
                {"properties": {"p": {"properties": {"x": {}}, "required": ["x"]}}},
                {"properties": {"p": {"properties": {"y": {}}, "required": ["y"]}}},
            ],
            "required": ["p"],
        },
        [{"p": {"x": 1, "y": 1}}],
    ),
    "an open branch": ({"anyOf": [ONE, {"type": "object", "required": ["b"]}]}, [{"b": 1, "c": 1}]),
    "an included open schema": (
        {**ONE, "allOf": [{"type": "object", "additionalProperties": {"type": "integer"}}]},
        [{"a": 1, "b": 1}],
    ),
    "two choices": (
        {
            "type": "object",
            "anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}],
            "allOf": [{"anyOf": [{"properties": {"c": {}}, "required": ["c"]}]}],
        },
        [{"a": 1, "c": 1}, {"b": 1, "c": 1}],
    ),
    "enum": ({"properties": {"a": {}}, "enum": [{"a": 1}, {"a": 1, "b": 2}]}, [{"a": 1, "b": 2}]),
    "a base with a required sibling": (
        {
            "type": "object",
            "properties": {"one": {"$ref": "#/$defs/base"}, "two": {"allOf": [
                {"$ref": "#/$defs/base"}, {"properties": {"x": {}}, "required": ["x"]},
            ]}},
            "$defs": {"base": BASE},
        },
        [{"one": {"id": 1}, "two": {"id": 1, "x": 1}}],
    ),
    "an anchor": (
        {
            "allOf": [{"$ref": "#base"}, {"properties": {"x": {}}, "required": ["x"]}],
            "$defs": {"base": {"$anchor": "base", **BASE}},
        },
        [{"id": 1, "x": 1}],
    ),
    # Removed keywords may require properties.
    "then": (
        {"properties": {"a": {}}, "if": {}, "then": {"properties": {"b": {}}, "required": ["b"]}},
        [{"a": 1, "b": 1}],
    ),
    "a pattern that is not supported": ({**ONE, "patternProperties": {"^(?!a)b": {}}}, [{"b": 1}]),
    "an included schema that is not supported": (
        {**ONE, "allOf": [{"$ref": "https://example.com/schema"}]},
        [{"a": 1, "b": 1}],
    ),
    "unevaluatedProperties": ({**ONE, "unevaluatedProperties": {"type": "null"}}, [{"b": None}]),
}  # fmt: skip


def is_possible(grammars: GrammarCache, vocabulary: Vocabulary, schema: dict[str, Any], value: Any) -> bool:
    """Return whether a response in this format can have this value."""
    matcher = grammars.compile(Grammar("json_schema", json.dumps(schema), is_strict=False)).start()
    matcher.advance(vocabulary.ids(f" {json.dumps(value)}"))
    return matcher.error is None and EOS_ID in allowed(matcher)


@pytest.mark.parametrize("name", CLOSED)
def test_an_object_contains_only_the_listed_properties(
    grammars: GrammarCache, vocabulary: Vocabulary, name: str
) -> None:
    schema, possible, excluded = CLOSED[name]
    for value in possible:
        assert is_possible(grammars, vocabulary, schema, value), value
    for value in excluded:
        assert is_valid(json.dumps(value), schema), value  # only closing excludes it
        assert not is_possible(grammars, vocabulary, schema, value), value


@pytest.mark.parametrize("name", OPEN)
def test_an_object_stays_open_if_other_properties_are_wanted(
    grammars: GrammarCache, vocabulary: Vocabulary, name: str
) -> None:
    schema, possible = OPEN[name]
    for value in possible:
        assert is_possible(grammars, vocabulary, schema, value), value


def test_every_schema_in_a_request_is_closed(grammars: GrammarCache, vocabulary: Vocabulary) -> None:
    """The arguments of each function, strict or not, and the response format."""
    functions = [
        {"name": "f", "parameters": ONE, "is_strict": True},
        {"name": "g", "parameters": ONE, "is_strict": False},
        {"name": "open", "parameters": {**ONE, "additionalProperties": True}, "is_strict": False},
    ]
    response = msgspec.to_builtins(Grammar("json_schema", json.dumps(ONE)))
    content = {"choice": "auto", "is_parallel": False, "functions": functions, "response": response}
    source = json.dumps(content)
    for arguments, is_listed in (('{"a": 1}', True), ('{"b": 1}', False)):
        assert accepts(grammars, vocabulary, "tools", source, arguments) == is_listed
        for name in ("f", "g", "open"):
            call = f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'
            is_accepted = accepts(grammars, vocabulary, "tools", source, call)
            assert is_accepted == (is_listed or name == "open"), call


def test_closing_does_not_hide_that_alternatives_overlap(
    grammars: GrammarCache, vocabulary: Vocabulary
) -> None:
    """If both were closed first, the library would consider them disjoint and allow a value of both."""
    schema = {
        "oneOf": [
            {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {}}, "required": ["b"]},
        ]
    }
    assert not is_valid('{"a": 1, "b": 1}', schema)
    with pytest.raises(UnsupportedGrammar, match="oneOf"):
        grammars.compile(Grammar("json_schema", json.dumps(schema)))


def test_the_library_accepts_every_published_schema_in_closed_form(grammars: GrammarCache) -> None:
    for name, schema in published_schemas().items():
        grammars.compile(Grammar("json_schema", json.dumps(closed_schema(schema))))
        assert closed_schema(closed_schema(schema)) == closed_schema(schema), name


def test_a_long_chain_of_references_is_closed() -> None:
    """The number of references is not limited by the depth of Python's stack."""
    size = 2000
    definitions: dict[str, Any] = {
        f"d{index}": {"type": "object", "properties": {"next": {"$ref": f"#/$defs/d{(index + 1) % size}"}}}
        for index in range(size)
    }
    closed = closed_schema({"$ref": "#/$defs/d0", "$defs": definitions})
    assert all(part["additionalProperties"] is False for part in closed["$defs"].values())


def test_a_schema_that_is_included_twice_is_visited_once() -> None:
    """Each level doubles the number of paths, but not the time."""
    definitions: dict[str, Any] = {
        f"d{index}": {"allOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 2} for index in range(60)
    }
    definitions["d60"] = ONE
    closed = closed_schema({"$ref": "#/$defs/d0", "title": "x", "$defs": definitions})
    assert closed["$defs"]["d0"]["properties"] == {"a": True}
