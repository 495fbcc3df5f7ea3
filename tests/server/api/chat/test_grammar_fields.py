"""Structured output: response_format and related fields reach the worker's job."""

from __future__ import annotations

import json
from typing import Any

from llava_wire.messages.sampling_params import Grammar

from tests.server.conftest import Stack

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"const": "é"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{"type":"string"},"a":{"const":"é"}}}'
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}

VALID: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "text"}, "ignore_eos": True}, None),
    ({"structured_outputs": {}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
    ({"response_format": JSON_SCHEMA}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"guided_json": SCHEMA}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"guided_regex": "a+/"}, Grammar("regex", "a+/")),
    ({"guided_choice": ["a", "é"]}, Grammar("choice", '["a","é"]')),
    ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", SCHEMA_TEXT)),
    ({"structured_outputs": {"regex": "a"}}, Grammar("regex", "a")),
    ({"structured_outputs": {"choice": ["a"]}}, Grammar("choice", '["a"]')),
    ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
    ({"response_format": {"type": "text"}, "guided_regex": "a"}, Grammar("regex", "a")),
]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def format_of(schema: Any, name: str = "x") -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}}


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": "json"}, "response_format", "object"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": JSON_SCHEMA | {"type": "text"}}, "response_format.json_schema", "is set"),
    (format_of(True), "response_format.json_schema.schema", "object"),
    (format_of([]), "response_format.json_schema.schema", "object"),
    (format_of(SCHEMA, "a b"), "response_format.json_schema.name", "a b"),
    (format_of({"title": "x" * 65536}), "response_format.json_schema.schema", "65536"),
    (format_of(nested(65)), "response_format.json_schema.schema", "64"),
    ({"guided_json": "{}"}, "guided_json", "object"),
    ({"guided_regex": ""}, "guided_regex", "1"),
    ({"guided_regex": "a" * 8193}, "guided_regex", "8192"),
    ({"guided_choice": []}, "guided_choice", "1"),
    ({"guided_choice": [""]}, "guided_choice[0]", "1"),
    ({"guided_choice": [5]}, "guided_choice[0]", "string"),
    ({"guided_choice": ["a"] * 1001}, "guided_choice", "1000"),
    ({"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar", "not permitted"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex"),
    ({"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json", "response_format"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "structured"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex"),
]


def test_structured_output_fields_reach_the_worker(stack: Stack) -> None:
    for fields, grammar in VALID:
        assert stack.chat("say x", **fields).status_code == 200, fields
        assert stack.worker.assignments[-1].job.sampling.grammar == grammar, fields


def test_invalid_structured_output_is_a_400_that_names_the_field(stack: Stack) -> None:
    for fields, param, word in INVALID:
        num_jobs = len(stack.worker.assignments)
        response = stack.chat("say x", **fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), fields
        assert word in json.dumps(error["message"]), fields
        assert len(stack.worker.assignments) == num_jobs, fields


def test_a_schema_at_the_limits_is_accepted(stack: Stack) -> None:
    text = len(json.dumps({"title": ""}, separators=(",", ":")))
    assert stack.chat("say x", **format_of({"title": "x" * (65536 - text)})).status_code == 200
    assert stack.chat("say x", **format_of(nested(64))).status_code == 200
