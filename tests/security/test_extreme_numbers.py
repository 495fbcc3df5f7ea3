"""Every number that a request may hold, at values no one means: an answer or a 400, never a 500 or a hang.

The numbers and their bounds come from the OpenAPI document, so a new field is tried too.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import Stack
from tests.server.openapi_document import REQUEST_SCHEMAS, LeafSchema, leaf_schemas
from tests.server.scripted_worker import MODEL

# As JSON text: some of these are no Python value, and some are no JSON either.
VALUES = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e400", "5e-324", "-0.0", "0", "0.5", "1.0"]
VALUES += [str(2**31), str(2**63), str(-(2**63) - 1), "9" * 400]
VALUES += ["true", '"1"', "[1]", "{}", "null"]

SAID = [{"role": "user", "content": "say yes"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID},
    "/v1/responses": {"input": "say yes"},
    "/v1/messages": {"messages": SAID, "max_tokens": 9},
    "/v1/completions": {"prompt": "say yes"},
    "/v1/embeddings": {"input": "yes"},
    "/detokenize": {"tokens": [1]},
}
# What a field may only be given with.
NEEDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions top_logprobs": {"logprobs": True},
    "/v1/responses top_logprobs": {"include": ["message.output_text.logprobs"]},
    "/v1/chat/completions min_tokens": {"max_tokens": 2**31 - 1},
    "/v1/completions min_tokens": {"max_tokens": 2**31 - 1},
    "/v1/completions max_tokens": {"echo": True},  # 0 is
}
MAY_BE_MORE = {"prompt", "input"}  # texts and lists as well as numbers


def numbers() -> dict[str, tuple[str, LeafSchema]]:
    """By name: the route and the place of every number."""
    return {
        f"{path} {'.'.join(place.steps)}": (path, place)
        for path, schema in REQUEST_SCHEMAS.items()
        for place in leaf_schemas(schema)
        if place.schema.get("type") in ("integer", "number")
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
    """The least and the greatest value. Raises KeyError where one is missing."""
    least = schema["minimum"] if "minimum" in schema else schema["exclusiveMinimum"]
    most = schema["maximum"] if "maximum" in schema else schema["exclusiveMaximum"]
    return least, most


def values(schema: dict[str, Any]) -> list[str]:
    beside = [json.dumps(bound + step) for bound in bounds(schema) for step in (-1, 0, 1)]
    return list(dict.fromkeys([*beside, *VALUES]))


def is_allowed(text: str, schema: dict[str, Any]) -> bool:
    """By the document."""
    value = json.loads(text)
    if type(value) is not int and not (type(value) is float and schema["type"] == "number"):
        return False
    least, most = bounds(schema)
    is_above = value > least or (value == least and "minimum" in schema)
    is_below = value < most or (value == most and "maximum" in schema)
    return is_above and is_below


def body(path: str, place: LeafSchema, text: str) -> str:
    """A request with that text in the place."""
    name, *rest = place.steps
    for step in reversed(rest):
        text = f"[{text}]" if step == "[]" else f'{{"1": {text}}}'
    fields = {"model": MODEL, **REQUESTS[path], **NEEDS.get(f"{path} {name}", {})}
    told = [f'"{key}": {json.dumps(value)}' for key, value in fields.items() if key != name]
    return f"{{{', '.join([*told, f'{json.dumps(name)}: {text}'])}}}"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_accepted_within_its_bounds_and_rejected_by_name_outside(stack: Stack, name: str) -> None:
    path, place = NUMBERS[name]
    wrong = []
    for text in values(place.schema):
        response = stack.http.post(
            path, content=body(path, place, text), headers={"content-type": "application/json"}
        )
        expected = {200} if is_allowed(text, place.schema) else {400}
        if text == "null" or (place.steps[0] in MAY_BE_MORE and text in ('"1"', "[1]", "{}")):
            expected = {200, 400}
        if response.status_code not in expected:
            wrong.append((text, response.status_code, response.text))
        elif response.status_code == 400:
            error = response.json()["error"]
            assert error["code"].startswith(("invalid", "unsupported", "missing")), (text, error)
            assert str(error["param"]).startswith(place.steps[0]), (text, error)
    assert wrong == []
    assert stack.works()


@pytest.mark.parametrize("depth", [100, 10_000, 200_000])
def test_deeply_nested_json_is_rejected(stack: Stack, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        text = f'{{"model": "{MODEL}", "messages": {opening * depth}1{closing * depth}}}'
        response = stack.http.post(
            "/v1/chat/completions", content=text, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    assert stack.works()
