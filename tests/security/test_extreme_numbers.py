"""Extreme values for every number in a request: the server responds with 200 or 400, never 500, and never
hangs.

The numbers and their bounds come from the OpenAPI document, so new fields are tested automatically.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import Stack
from tests.server.document_check import error_of
from tests.server.openapi_document import REQUEST_SCHEMAS, LeafSchema, leaf_schemas
from tests.server.scripted_worker import MODEL

# Values as JSON text: Python cannot represent some of them, and some are invalid JSON.
VALUES = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e400", "5e-324", "-0.0", "0", "0.5", "1.0"]
VALUES += [str(2**31), str(2**63), str(-(2**63) - 1), "9" * 400]
VALUES += ["true", '"1"', "[1]", "{}", "null"]

MESSAGES = [{"role": "user", "content": "say yes"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/responses": {"input": "say yes"},
    "/v1/responses/input_tokens": {"input": "say yes"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/completions": {"prompt": "say yes"},
    "/v1/embeddings": {"input": "yes"},
    "/detokenize": {"tokens": [1]},
    "/api/chat": {"messages": MESSAGES, "stream": False},
    "/api/generate": {"prompt": "say yes", "stream": False},
    "/api/embed": {"input": "yes"},
}
# For some fields, the other fields that must be set along with them.
REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions top_logprobs": {"logprobs": True},
    "/v1/responses top_logprobs": {"include": ["message.output_text.logprobs"]},
    "/v1/responses/input_tokens top_logprobs": {"include": ["message.output_text.logprobs"]},
    "/v1/chat/completions min_tokens": {"max_tokens": 2**31 - 1},
    "/v1/messages min_tokens": {"max_tokens": 2**31 - 1},
    "/v1/completions min_tokens": {"max_tokens": 2**31 - 1},
    "/v1/completions max_tokens": {"echo": True},  # required if max_tokens is 0
}
OLLAMA = {"/api/chat", "/api/generate"}
FORMS = {"/v1/files"}  # test_image_files.py covers their numbers
UNION_FIELDS = {"prompt", "input"}  # accept strings and lists in addition to numbers


def numbers() -> dict[str, tuple[str, LeafSchema]]:
    """Return the route and schema of every number, keyed by "ROUTE FIELD_PATH"."""
    return {
        f"{path} {'.'.join(leaf.steps)}": (path, leaf)
        for path, schema in REQUEST_SCHEMAS.items()
        for leaf in leaf_schemas(schema)
        if path not in FORMS and leaf.schema.get("type") in ("integer", "number")
    }


NUMBERS = numbers()


def test_numbers_are_found_on_all_routes_including_nested_ones() -> None:
    assert len(NUMBERS) >= 44
    assert {path for path, _ in NUMBERS.values()} == REQUESTS.keys()
    assert {
        "/v1/messages max_tokens",
        "/v1/completions prompt.[].[]",
        "/v1/chat/completions logit_bias.{}",
    } <= (NUMBERS.keys())


def bounds(schema: dict[str, Any]) -> tuple[float, float]:
    """Return the minimum and maximum in a schema. Raises KeyError if either is missing."""
    minimum = schema["minimum"] if "minimum" in schema else schema["exclusiveMinimum"]
    maximum = schema["maximum"] if "maximum" in schema else schema["exclusiveMaximum"]
    return minimum, maximum


def values(schema: dict[str, Any]) -> list[str]:
    """Return extreme values, the bounds in the schema, and the values next to the bounds."""
    near_bounds = [json.dumps(bound + step) for bound in bounds(schema) for step in (-1, 0, 1)]
    return list(dict.fromkeys([*near_bounds, *VALUES]))


def is_allowed(text: str, schema: dict[str, Any]) -> bool:
    """Return whether the schema allows the value."""
    value = json.loads(text)
    if type(value) is not int and not (type(value) is float and schema["type"] == "number"):
        return False
    if "not" in schema and value == schema["not"]["const"]:
        return False
    minimum, maximum = bounds(schema)
    if value == schema.get("not", {}).get("const"):
        return False
    is_above = value > minimum or (value == minimum and "minimum" in schema)
    is_below = value < maximum or (value == maximum and "maximum" in schema)
    return is_above and is_below


def body(path: str, leaf: LeafSchema, text: str) -> str:
    """Return a request body in which the field has the given JSON text as its value."""
    name, *rest = leaf.steps
    for step in reversed(rest):
        key = "1" if step == "{}" else step
        text = f"[{text}]" if step == "[]" else f'{{"{key}": {text}}}'
    fields = {"model": MODEL, **REQUESTS[path], **REQUIRED_FIELDS.get(f"{path} {name}", {})}
    members = [f'"{key}": {json.dumps(value)}' for key, value in fields.items() if key != name]
    return f"{{{', '.join([*members, f'{json.dumps(name)}: {text}'])}}}"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_accepted_within_its_bounds_and_rejected_by_name_outside(stack: Stack, name: str) -> None:
    path, leaf = NUMBERS[name]
    failures = []
    for text in values(leaf.schema):
        response = stack.http.post(
            path, content=body(path, leaf, text), headers={"content-type": "application/json"}
        )
        expected = {200} if is_allowed(text, leaf.schema) else {400}
        if text == "null" or (leaf.steps[0] in UNION_FIELDS and text in ('"1"', "[1]", "{}")):
            expected = {200, 400}
        if (
            path in OLLAMA and leaf.schema["type"] == "integer" and "." in text
        ):  # Ollama accepts 1.0 as an integer
            expected = {200, 400}
        if response.status_code not in expected:
            failures.append((text, response.status_code, response.text))
        elif response.status_code == 400:
            error = error_of(response)
            assert error["code"].startswith(("invalid", "unsupported", "missing")), (text, error)
            assert str(error["param"]).startswith(leaf.steps[0]), (text, error)
    assert failures == []
    assert stack.works()


@pytest.mark.parametrize("depth", [100, 10_000, 200_000])
def test_deeply_nested_json_is_rejected(stack: Stack, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        text = f'{{"model": "{MODEL}", "messages": {opening * depth}1{closing * depth}}}'
        response = stack.http.post(
            "/v1/chat/completions", content=text, headers={"content-type": "application/json"}
        )
        assert response.status_code == (400 if depth < 128 else 413)
    assert stack.works()
