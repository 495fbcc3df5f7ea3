"""Every number that a request may hold, at values no one means: an answer or a 400, never a 500 or a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llava_server.schemas import ChatRequest

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

# As JSON text: some of these are no Python value, and some are no JSON either.
VALUES = ["NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e400", "5e-324", "-0.0", "0", "-1", "0.5"]
VALUES += [str(2**31), str(2**63), str(-(2**63) - 1), str(2**64), "9" * 400]
VALUES += ["true", '"1"', "[1]", "{}", "null"]


def numeric_fields() -> list[str]:
    """By their schema, so that a new field is tried too."""

    def is_numeric(schema: dict[str, Any]) -> bool:
        branches = [schema, *schema.get("anyOf", ())]
        return any(branch.get("type") in ("integer", "number") for branch in branches)

    properties = ChatRequest.model_json_schema()["properties"]
    return [name for name, schema in properties.items() if is_numeric(schema)]


def test_the_fields_are_found() -> None:
    assert {"temperature", "top_p", "seed", "n", "max_tokens", "top_k", "min_tokens"} <= set(numeric_fields())


@pytest.mark.parametrize("field", [*numeric_fields(), "logit_bias", "stop_token_ids"])
def test_no_value_of_a_number_breaks_anything(stack: Stack, field: str) -> None:
    messages = json.dumps([{"role": "user", "content": "say yes"}])
    statuses = {}
    for value in VALUES:
        wrapped = {"logit_bias": '{"1": %s}', "stop_token_ids": "[%s]"}.get(field, "%s") % value
        body = f'{{"model": "{MODEL}", "messages": {messages}, "{field}": {wrapped}}}'
        response = stack.http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        statuses[value] = response.status_code
        if response.status_code == 400:
            assert response.json()["error"]["code"].startswith(("invalid", "unsupported")), response.text
    assert set(statuses.values()) <= {200, 400}, statuses
    assert [statuses[value] for value in ("NaN", "Infinity", "1e400", "{}")] == [400] * 4
    assert stack.works()


@pytest.mark.parametrize("depth", [100, 10_000, 200_000])
def test_json_of_any_depth_is_refused_and_not_followed(stack: Stack, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        body = f'{{"model": "{MODEL}", "messages": {opening * depth}1{closing * depth}}}'
        response = stack.http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    assert stack.works()
