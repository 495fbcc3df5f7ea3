"""The Models API in Anthropic's format, which the header ``anthropic-version`` selects."""

from __future__ import annotations

import re
from collections.abc import Iterator

import anthropic
import httpx2
import pytest
from llava_server.worker_registry import ServedModel

from tests.server.api_key_cli import ApiKeyCli
from tests.server.conftest import OwnStack, Stack
from tests.server.scripted_worker import MODEL, SPEC

HEADERS = {"anthropic-version": "2023-06-01"}
NAMES = [f"model-{number}" for number in range(5)]


@pytest.fixture
def many(own_stack: OwnStack) -> Iterator[Stack]:
    """A server that has also seen workers of other models."""
    stack = own_stack()
    registry = stack.server.services.registry
    for name in NAMES:
        registry.__dict__["_models"][name] = ServedModel(name, SPEC, 512, "bf16", "", 1_764_241_200)
    yield stack


def page(stack: Stack, **query: str | int) -> tuple[list[str], bool]:
    body = stack.http.get("/v1/models", headers=HEADERS, params=query).json()
    names = [model["id"] for model in body["data"]]
    assert (body["first_id"], body["last_id"]) == ((names[0], names[-1]) if names else (None, None))
    return names, body["has_more"]


def test_the_anthropic_client_lists_and_retrieves_models(stack: Stack) -> None:
    with anthropic.Anthropic(base_url=stack.server.url, api_key="any", max_retries=0) as client:
        listed = client.models.list()
        assert [model.id for model in listed] == [MODEL]
        model = client.models.retrieve(MODEL)
        assert (model.type, model.display_name, model.max_input_tokens) == ("model", MODEL, 4096)
        assert model.created_at.tzinfo is not None
        with pytest.raises(anthropic.NotFoundError) as error_info:
            client.models.retrieve("unknown")
    assert error_info.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def test_without_the_header_the_list_has_openais_format(stack: Stack) -> None:
    assert stack.http.get("/v1/models").json()["object"] == "list"
    body = stack.http.get("/v1/models", headers=HEADERS).json()
    assert body.keys() == {"data", "has_more", "first_id", "last_id"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["data"][0]["created_at"])


def test_the_anthropic_list_is_paged_in_both_directions(many: Stack) -> None:
    assert page(many) == ([*NAMES, MODEL], False)
    assert page(many, limit=2) == (NAMES[:2], True)
    assert page(many, limit=2, after_id=NAMES[1]) == (NAMES[2:4], True)
    assert page(many, limit=2, after_id=NAMES[3]) == ([NAMES[4], MODEL], False)
    assert page(many, after_id=MODEL) == ([], False)
    assert page(many, limit=2, before_id=NAMES[3]) == (NAMES[1:3], True)
    assert page(many, limit=2, before_id=NAMES[2]) == (NAMES[:2], False)
    assert page(many, before_id=NAMES[0]) == ([], False)
    with anthropic.Anthropic(base_url=many.server.url, api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list(limit=1)] == [*NAMES, MODEL]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"after_id": "unknown"}, "after_id"),
        ({"before_id": "unknown"}, "before_id"),
        ({"before_id": MODEL, "after_id": MODEL}, "before_id"),
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "x"}, "limit"),
    ],
)
def test_an_invalid_page_is_a_400_in_anthropics_format(
    stack: Stack, query: dict[str, str], param: str
) -> None:
    response = stack.http.get("/v1/models", headers=HEADERS, params=query)
    assert (response.status_code, response.json()["type"]) == (400, "error")
    assert response.json()["error"]["param"] == param


def error_of(response: httpx2.Response) -> tuple[int, str, str]:
    body = response.json()
    return response.status_code, body["type"], body["error"]["type"]


def test_all_errors_with_the_header_or_under_messages_have_anthropics_format(
    own_stack: OwnStack, api_key_cli: ApiKeyCli
) -> None:
    stack = own_stack(auth=True)
    for path, headers in (("/v1/messages", {}), ("/v1/messages/x", {}), ("/v1/models", HEADERS)):
        assert error_of(stack.http.get(path, headers=headers)) == (401, "error", "authentication_error")
    key = {"x-api-key": api_key_cli.create()}
    assert error_of(stack.http.get("/v1/messages/x", headers=key)) == (404, "error", "not_found_error")
    assert error_of(stack.http.get("/v1/messages", headers=key)) == (405, "error", "invalid_request_error")
    with_header = {**HEADERS, **key}
    assert error_of(stack.http.get("/v1/nowhere", headers=with_header)) == (404, "error", "not_found_error")
    assert stack.http.put("/v1/models", headers=with_header).json()["type"] == "error"
    limited = {"x-api-key": api_key_cli.create("--requests-per-min", "1")}
    stack.http.post("/v1/messages", json={}, headers=limited)
    rejected = stack.http.post("/v1/messages", json={}, headers=limited)
    assert error_of(rejected) == (429, "error", "rate_limit_error")
    stack.server.services.shutdown.begin()
    draining = stack.http.post("/v1/messages/count_tokens", json={}, headers=key)
    assert error_of(draining) == (503, "error", "overloaded_error")
