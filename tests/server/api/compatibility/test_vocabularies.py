"""Every field and literal value of the other servers' APIs has a status. None is ignored without a rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from anthropic.types.model_list_params import ModelListParams
from llava_server.api.compatibility.queries import QUERIES
from llava_server.api.compatibility.rule import Only, steps_of
from openai.types.batch_list_params import BatchListParams
from openai.types.chat.completion_list_params import CompletionListParams
from openai.types.chat.completions.message_list_params import MessageListParams
from openai.types.file_list_params import FileListParams
from openai.types.responses.input_item_list_params import InputItemListParams
from openai.types.responses.response_retrieve_params import ResponseRetrieveParamsBase
from vocabularies.files import read
from vocabularies.sources import INSTALLED, VOCABULARIES, extract
from vocabularies.status import MODELS, RULES, in_model, is_closed, literals_of, status_of

from tests.server.api.compatibility.bodies import BODIES, has_object, with_field
from tests.server.conftest import Stack
from tests.server.document_check import error_of
from tests.server.openapi_document import DOCUMENT

# Fields that accept any string, because its value has no effect, or because a validator checks it.
ANY_TEXT = {
    ("/v1/messages", "tools.name"),
    ("/v1/messages/count_tokens", "tools.name"),
    ("/v1/responses", "include"),
    *(
        (route, f"input[type={field}")
        for route in ("/v1/responses", "/v1/responses/input_tokens")
        for field in (
            "function_call].status",
            "function_call_output].status",
            "message].phase",
            "message].status",
        )
    ),
    ("/api/chat", "format"),  # a string or a schema
    ("/api/generate", "format"),
}
# Fields whose values the model does not parse. ``tool_choice`` is checked when it is converted.
ANY_VALUE = {"cache_control", "function_call", "input_schema", "tool_choice"}


# Parameters that anthropic's package sends as a header, and a group of parameters that the text describes.
IN_HEADERS, IN_DESCRIPTIONS = {"workspace_id"}, {"metadata"}


def fields() -> set[tuple[str, str]]:
    """Return (route, path) for each field of the vocabularies."""
    return {
        (route, path)
        for name in VOCABULARIES
        for route, vocabulary in read(name).items()
        for path in vocabulary
    }


def test_every_field_has_a_status() -> None:
    unknown = {(route, path) for route, path in fields() if status_of(route, path) is None}
    assert unknown == set()


def test_every_route_of_a_vocabulary_has_a_model() -> None:
    assert {route for route, _ in fields()} == MODELS.keys()


@pytest.mark.parametrize("name", INSTALLED)
def test_the_installed_package_has_exactly_the_fields_of_its_vocabulary(name: str) -> None:
    assert extract(name, Path(), is_closed) == read(name), "run python tools/update_vocabularies.py"


def test_a_field_without_a_rule_that_the_model_does_not_define_is_found() -> None:
    assert status_of("/v1/chat/completions", "new_field") is None
    assert status_of("/v1/chat/completions", "messages[role=user].new_field") is None
    assert status_of("/v1/chat/completions", "messages[role=user].content[type=text].new_field") is None


def test_a_rule_is_for_a_field_that_the_model_does_not_define() -> None:
    for route, rules in RULES.items():
        for path, rule in rules.by_path.items():
            defined = in_model(route, path.removesuffix(".*"))
            if isinstance(rule, Only):
                assert defined == "supported", (route, path)
            else:
                assert defined in (None, "rejected"), (route, path)


def test_a_literal_value_that_the_model_does_not_accept_is_rejected_with_the_field(stack: Stack) -> None:
    ignored, num_rejected = set(), 0
    for route, path, value in unaccepted_values():
        if literals_of(route, path) is None and path != "tool_choice.type":
            ignored.add((route, path))
            continue
        body, location = with_field(BODIES[route], path, value)
        response = stack.http.post(route, json=body)
        assert response.status_code == 400, (route, path, value)
        named, sent = (re.findall(r"[a-z_]+", each) for each in (error_of(response)["param"], location))
        num_names = max(1, len(sent) - 1) if has_object(BODIES[route], path) else 1
        assert named[:num_names] == sent[:num_names], (location, value, response.text)
        num_rejected += 1
    parsed = {
        (route, path) for route, path in ignored if not ANY_VALUE & {step[0] for step in steps_of(path)}
    }
    assert parsed == ANY_TEXT
    assert num_rejected > 50


def test_every_value_of_include_is_accepted(stack: Stack) -> None:
    include = sorted(read("openai")["/v1/responses"]["include"])
    response = stack.http.post("/v1/responses", json={**BODIES["/v1/responses"], "include": include})
    assert response.status_code == 200, response.text


def unaccepted_values() -> list[tuple[str, str, str]]:
    """Return (route, path, value) for each literal value that the model's type does not include."""
    found = {
        (route, path, value)
        for name in VOCABULARIES
        for route, vocabulary in read(name).items()
        if route in BODIES
        for path, values in vocabulary.items()
        if status_of(route, path) == "supported"
        for value in values - (literals_of(route, path) or frozenset())
    }
    return sorted(found)


def test_every_query_parameter_is_documented_or_has_a_rule() -> None:
    for operation, parameters in (
        ("GET /v1/files", FileListParams),
        ("GET /v1/batches", BatchListParams),
        ("GET /v1/responses/{response_id}", ResponseRetrieveParamsBase),
        ("GET /v1/responses/{response_id}/input_items", InputItemListParams),
        ("GET /v1/chat/completions", CompletionListParams),
        ("GET /v1/chat/completions/{job_id}/messages", MessageListParams),
        ("GET /v1/models", ModelListParams),
    ):
        method, path = operation.split()
        documented = {
            each["name"]
            for each in DOCUMENT["paths"][path][method.lower()]["parameters"]
            if each["in"] == "query"
        }
        ruled = set(QUERIES[operation].by_path) if operation in QUERIES else set()
        named = set(parameters.__annotations__) - IN_HEADERS - IN_DESCRIPTIONS
        assert named <= documented | ruled, operation
        assert not documented & ruled, operation
