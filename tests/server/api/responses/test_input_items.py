"""The list of input items, and the count of input tokens, with OpenAI's client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import ResponseItem, ResponseItemList

from tests.server.api.openapi.test_response_shapes import vendor_errors
from tests.server.api.responses.test_conversations import IMAGE
from tests.server.api.responses.test_responses import WEATHER
from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL

INPUT: list[Any] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [IMAGE, {"type": "input_text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A circle."},
    {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "18 degrees"},
    {"role": "user", "content": "say yes"},
]


def text_of(item: Any) -> Any:
    """Return the text of the first content part."""
    return item.content[0].text


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_all_kinds_of_items_are_listed_and_match_the_vendors_types(
    client: openai.OpenAI, stack: Stack
) -> None:
    response = client.responses.create(model=MODEL, input=INPUT, tools=[WEATHER])
    listed = stack.http.get(f"/v1/responses/{response.id}/input_items", params={"order": "asc"}).json()
    assert vendor_errors(ResponseItemList, listed) == []
    assert [error for item in listed["data"] for error in vendor_errors(ResponseItem, item)] == []
    kinds = [(item["type"], item.get("role")) for item in listed["data"]]
    assert kinds == [
        ("message", "developer"),
        ("message", "user"),
        ("message", "assistant"),
        ("function_call", None),
        ("function_call_output", None),
        ("message", "user"),
    ]
    assert listed["data"][4]["output"] == "18 degrees"
    assert listed["data"][5]["content"] == [{"type": "input_text", "text": "say yes"}]
    assert len({item["id"] for item in listed["data"]}) == 6


def test_the_items_are_paged_in_both_orders(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": f"say {number}"} for number in range(7)]
    response_id = client.responses.create(model=MODEL, input=items).id
    orders: tuple[Literal["asc", "desc"], ...] = ("asc", "desc")
    for order in orders:
        page = client.responses.input_items.list(response_id, limit=3, order=order)
        texts = [text_of(item) for item in page]
        expected = [f"say {number}" for number in range(7)]
        assert texts == (expected if order == "asc" else expected[::-1])
        assert len(page.data) == 3 and page.has_more
    first = client.responses.input_items.list(response_id, limit=7)
    assert first.has_more is False and text_of(first.data[0]) == "say 6"
    last = client.responses.input_items.list(response_id, after=first.data[-1].id or "")
    assert (last.data, last.has_more) == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "x"}, "after"),
    ],
)
def test_an_invalid_page_is_an_error_that_names_the_parameter(
    stack: Stack, query: dict[str, Any], param: str
) -> None:
    response_id = stack.http.post("/v1/responses", json={"model": MODEL, "input": "say a"}).json()["id"]
    response = stack.http.get(f"/v1/responses/{response_id}/input_items", params=query)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_the_items_of_earlier_responses_are_listed_too(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="say one")
    second = client.responses.create(model=MODEL, input="say two", previous_response_id=first.id)
    page = client.responses.input_items.list(second.id, order="asc")
    texts = [text_of(item) for item in page]
    assert texts == ["say one", "one", "say two"]
    assert page.data[1].id == first.output[0].id


def test_image_urls_are_listed_only_if_included(client: openai.OpenAI, stack: Stack) -> None:
    response_id = client.responses.create(model=MODEL, input=INPUT[1:2]).id
    item: Any
    [item] = client.responses.input_items.list(response_id).data
    assert item.content[0].image_url is None
    include: list[Any] = ["message.input_image.image_url"]
    [item] = client.responses.input_items.list(response_id, include=include).data
    assert item.content[0].image_url == IMAGE["image_url"]
    for name in ("include", "include[]"):
        plain = stack.http.get(f"/v1/responses/{response_id}/input_items", params={name: include}).json()
        assert plain["data"][0]["content"][0]["image_url"] == IMAGE["image_url"]


def test_the_items_of_a_response_in_progress_are_listed(client: openai.OpenAI, stack: Stack) -> None:
    created = client.responses.create(model=MODEL, input="hold", background=True)
    [item] = client.responses.input_items.list(created.id).data
    assert text_of(item) == "hold"
    stack.worker.release.set()


def test_an_unstored_response_has_no_items(client: openai.OpenAI) -> None:
    response_id = client.responses.create(model=MODEL, input="say a", store=False).id
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(response_id)


def test_the_input_tokens_are_counted(client: openai.OpenAI, stack: Stack) -> None:
    count = client.responses.input_tokens.count(model=MODEL, input="say yes")
    assert (count.object, count.input_tokens) == ("response.input_tokens", len("say yes"))
    first = client.responses.create(model=MODEL, input="say one")
    longer = client.responses.input_tokens.count(
        model=MODEL, input="say yes", previous_response_id=first.id, instructions="Be brief."
    )
    assert longer.input_tokens == len("Be brief." + "say one" + "one" + "say yes")
    assert len(stack.worker.assignments[-1].job.messages) == 4


def test_counting_an_invalid_input_is_an_error_that_names_the_field(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "nobody", "content": "a"}]
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.input_tokens.count(model=MODEL, input=items)
    assert error.value.param == "input[0].role"
