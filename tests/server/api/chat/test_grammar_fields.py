"""Structured output: response_format and related fields reach the worker's job."""

from __future__ import annotations

import json
from typing import Any

from llava_wire.messages.sampling_params import Grammar

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

SCHEMA = {
    "type": "object",
    "title": "Not enforced.",
    "properties": {"title": {"type": "string", "description": "b"}, "a": {"const": "é"}},
}
SCHEMA_TEXT = '{"type":"object","properties":{"title":{"type":"string"},"a":{"const":"é"}}}'
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
LOOSE = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
GBNF = 'root ::= "a"'


def strict(param: str) -> Grammar:
    return Grammar("json_schema", SCHEMA_TEXT, param=param)


VALID: list[tuple[dict[str, Any], Grammar | None]] = [
    ({}, None),
    ({"response_format": None}, None),
    ({"response_format": {"type": "text"}, "ignore_eos": True}, None),
    ({"structured_outputs": {}}, None),
    ({"grammar": "", "ebnf": None}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json_object", param="response_format")),
    ({"response_format": JSON_SCHEMA}, strict("response_format.json_schema.schema")),
    (
        {"response_format": LOOSE},
        Grammar("json_schema", SCHEMA_TEXT, False, "response_format.json_schema.schema"),
    ),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        Grammar("json_schema", SCHEMA_TEXT, False, "response_format.schema"),
    ),
    (
        {"response_format": {"type": "regex", "pattern": "a+"}},
        Grammar("regex", "a+", param="response_format.pattern"),
    ),
    (
        {"response_format": {"type": "grammar", "grammar": GBNF}},
        Grammar("gbnf", GBNF, param="response_format.grammar"),
    ),
    ({"guided_json": SCHEMA}, strict("guided_json")),
    ({"guided_json": json.dumps(SCHEMA)}, strict("guided_json")),
    ({"json_schema": SCHEMA}, strict("json_schema")),
    ({"json_schema": json.dumps(SCHEMA)}, strict("json_schema")),
    ({"guided_regex": "a+/"}, Grammar("regex", "a+/", param="guided_regex")),
    ({"regex": "a"}, Grammar("regex", "a", param="regex")),
    ({"guided_choice": ["a", "é"]}, Grammar("choice", '["a","é"]', param="guided_choice")),
    ({"guided_grammar": GBNF}, Grammar("gbnf", GBNF, param="guided_grammar")),
    ({"grammar": GBNF}, Grammar("gbnf", GBNF, param="grammar")),
    ({"ebnf": GBNF}, Grammar("gbnf", GBNF, param="ebnf")),
    ({"structured_outputs": {"json": SCHEMA}}, strict("structured_outputs.json")),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, strict("structured_outputs.json")),
    ({"structured_outputs": {"regex": "a"}}, Grammar("regex", "a", param="structured_outputs.regex")),
    (
        {"structured_outputs": {"choice": ["a"]}},
        Grammar("choice", '["a"]', param="structured_outputs.choice"),
    ),
    ({"structured_outputs": {"grammar": GBNF}}, Grammar("gbnf", GBNF, param="structured_outputs.grammar")),
    (
        {"structured_outputs": {"json_object": True, "disable_fallback": True}},
        Grammar("json_object", param="structured_outputs.json_object"),
    ),
    (
        {"response_format": {"type": "text"}, "guided_regex": "a"},
        Grammar("regex", "a", param="guided_regex"),
    ),
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
    (format_of({"const": "x" * 65536}), "response_format.json_schema.schema", "65536"),
    (format_of(nested(65)), "response_format.json_schema.schema", "64"),
    ({"guided_json": "{"}, "guided_json", "not valid JSON"),
    ({"guided_json": "[]"}, "guided_json", "does not contain a JSON object"),
    ({"json_schema": "[" * 100_000}, "json_schema", "a string that is nested too deeply"),
    ({"response_format": {"type": "regex"}}, "response_format.pattern", "missing"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "is set"),
    ({"response_format": LOOSE | {"schema": {}}}, "response_format.schema", "only one"),
    ({"structural_tag": "{}"}, "structural_tag", "tools"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "tools"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "limited"),
    ({"ebnf": GBNF, "grammar": GBNF}, "ebnf", "grammar and ebnf"),
    ({"json_schema": {}, "regex": "a"}, "regex", "json_schema and regex"),
    ({"grammar": "x" * 65537}, "grammar", "65536"),
    ({"guided_regex": ""}, "guided_regex", "1"),
    ({"guided_regex": "a" * 8193}, "guided_regex", "8192"),
    ({"guided_choice": []}, "guided_choice", "1"),
    ({"guided_choice": [""]}, "guided_choice[0]", "1"),
    ({"guided_choice": [5]}, "guided_choice[0]", "string"),
    ({"guided_choice": ["a"] * 1001}, "guided_choice", "1000"),
    ({"structured_outputs": {"xml": "x"}}, "structured_outputs.xml", "not permitted"),
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
    text = len(json.dumps({"const": ""}, separators=(",", ":")))
    assert stack.chat("say x", **format_of({"const": "x" * (65536 - text)})).status_code == 200
    assert stack.chat("say x", **format_of(nested(64))).status_code == 200


def test_long_descriptions_do_not_count_toward_the_limits(stack: Stack) -> None:
    schema = {"properties": {"a": {"description": "x" * 200_000}}}
    assert stack.chat("say x", **format_of(schema)).status_code == 200
    grammar = stack.worker.assignments[-1].job.sampling.grammar
    assert grammar is not None and grammar.text == '{"properties":{"a":{}}}'


def test_only_jobs_that_older_workers_cannot_run_require_a_newer_version(stack: Stack) -> None:
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    object_format = {"response_format": {"type": "json_object"}}
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1),
        (object_format, 1),
        (tools, 1),
        ({**tools, **object_format, "tool_choice": "required"}, 1),
        ({**tools, **object_format}, 3),
        ({"grammar": GBNF}, 3),
    ]
    for fields, version in cases:
        assert stack.chat("say x", **fields).status_code == 200
        assert stack.worker.assignments[-1].job.version == version, fields


def test_a_text_completion_accepts_the_same_fields(stack: Stack) -> None:
    body = {"model": MODEL, "prompt": "say x", "grammar": GBNF}
    assert stack.http.post("/v1/completions", json=body).status_code == 200
    assert stack.worker.assignments[-1].job.sampling.grammar == Grammar("gbnf", GBNF, param="grammar")
