"""Stored responses can be read later, generated in the background, cancelled and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.machine_speed import scaled
from tests.server.api.responses.test_responses import CLOCK, WEATHER
from tests.server.api.sse_lines import events_of
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(stack: Stack, question: str, **fields: Any) -> Any:
    return stack.http.post("/v1/responses", json={"model": MODEL, "input": question, **fields})


def read(stack: Stack, response_id: str, **query: Any) -> Any:
    return stack.http.get(f"/v1/responses/{response_id}", params=query)


def wait_for_end(client: openai.OpenAI, response_id: str) -> Any:
    wait_until(lambda: client.responses.retrieve(response_id).status not in ("queued", "in_progress"))
    return client.responses.retrieve(response_id)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"instructions": "Be brief.", "metadata": {"run": "7"}, "temperature": 0.5, "user": "user-7"},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"tools": [WEATHER, CLOCK], "service_tier": "flex"},
    ],
    ids=str,
)
def test_a_stored_response_equals_the_original(stack: Stack, fields: dict[str, Any]) -> None:
    original = ask(stack, "say one two three", **fields).json()
    stored = read(stack, original["id"]).json()
    assert abs(stored.pop("created_at") - original.pop("created_at")) <= 1
    assert stored == original and original["store"] is True


def test_a_background_response_is_queued_generated_and_read(client: openai.OpenAI, stack: Stack) -> None:
    created = client.responses.create(model=MODEL, input="hold", background=True)
    assert (created.status, created.output_text, created.background) == ("queued", "", True)
    wait_until(lambda: client.responses.retrieve(created.id).output_text == "begun ")
    assert client.responses.retrieve(created.id).status == "in_progress"
    stack.worker.release.set()
    response = wait_for_end(client, created.id)
    assert (response.status, response.output_text) == ("completed", "begun done")
    assert response.usage is not None and response.usage.output_tokens == 3


def test_a_failed_background_response_reports_its_error(client: openai.OpenAI) -> None:
    created = client.responses.create(model=MODEL, input="break internal_error", background=True)
    response = wait_for_end(client, created.id)
    assert response.status == "failed"
    assert response.error is not None and "scripted failure" in response.error.message


def test_events_are_resumed_after_a_sequence_number(client: openai.OpenAI, stack: Stack) -> None:
    whole = events_of(ask(stack, "say one two three", stream=True))
    response_id = whole[0][1]["response"]["id"]
    for start in (0, 4, len(whole) - 2, len(whole) + 5):
        again = events_of(read(stack, response_id, stream="true", starting_after=start))
        assert [event["sequence_number"] for _, event in again] == list(range(start + 1, len(whole)))
        assert [name for name, _ in again] == [name for name, _ in whole[start + 1 :]]
    with client.responses.retrieve(response_id, stream=True) as stream:
        assert [event.type for event in stream] == [name for name, _ in whole]


def test_a_background_response_continues_after_a_disconnect(client: openai.OpenAI, stack: Stack) -> None:
    with client.responses.create(model=MODEL, input="hold", background=True, stream=True) as stream:
        first = next(iter(stream))
        assert first.type == "response.created"
    stack.worker.release.set()
    assert wait_for_end(client, first.response.id).output_text == "begun done"


def test_a_foreground_response_is_cancelled_after_a_disconnect(client: openai.OpenAI, stack: Stack) -> None:
    with client.responses.create(model=MODEL, input="go-on", stream=True) as stream:
        first = next(iter(stream))
        assert first.type == "response.created"
    wait_until(lambda: len(stack.worker.refused) == 1)
    assert client.responses.retrieve(first.response.id).status == "cancelled"


def test_a_cancelled_response_has_status_cancelled(client: openai.OpenAI, stack: Stack) -> None:
    created = client.responses.create(model=MODEL, input="go-on", background=True)
    wait_until(lambda: client.responses.retrieve(created.id).status == "in_progress")
    assert client.responses.cancel(created.id).status == "cancelled"
    wait_until(lambda: len(stack.worker.refused) == 1)
    assert client.responses.retrieve(created.id).status == "cancelled"


def test_cancelling_a_completed_response_has_no_effect(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="say yes")
    assert client.responses.cancel(response.id).status == "completed"


def test_only_stored_responses_can_be_read(stack: Stack) -> None:
    unstored = ask(stack, "say yes", store=False).json()
    assert unstored["store"] is False
    chat = stack.chat("say yes").json()["id"]
    for name in (unstored["id"], chat, chat.replace("chatcmpl-", "resp_"), "resp_none", "none"):
        assert (read(stack, name).status_code, read(stack, name).json()["error"]["code"]) == (
            404,
            "answer_not_found",
        )
        assert stack.http.post(f"/v1/responses/{name}/cancel").status_code == 404
        assert stack.http.delete(f"/v1/responses/{name}").status_code == 404


@pytest.mark.parametrize("start", ["-1", "x", "1e3", ""])
def test_an_invalid_sequence_number_is_rejected(stack: Stack, start: str) -> None:
    response_id = ask(stack, "say yes").json()["id"]
    error = read(stack, response_id, stream="true", starting_after=start).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "starting_after")


def test_a_deleted_response_is_not_found(client: openai.OpenAI, stack: Stack) -> None:
    response_id = client.responses.create(model=MODEL, input="say yes").id
    deleted = stack.http.delete(f"/v1/responses/{response_id}")
    assert (deleted.status_code, deleted.json()) == (
        200,
        {"id": response_id, "object": "response", "deleted": True},
    )
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(response_id)


def test_deleting_a_response_in_progress_cancels_it(client: openai.OpenAI, stack: Stack) -> None:
    created = client.responses.create(model=MODEL, input="go-on", background=True)
    wait_until(lambda: client.responses.retrieve(created.id).status == "in_progress")
    client.responses.delete(created.id)
    wait_until(lambda: len(stack.worker.refused) == 1)
    assert read(stack, created.id).status_code == 404


def test_a_response_is_not_visible_to_other_keys(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys="first-key-0123456789,other-key-0123456789")
    mine, others = ({"Authorization": f"Bearer {key}-key-0123456789"} for key in ("first", "other"))
    body = {"model": MODEL, "input": "go-on", "background": True}
    response_id = stack.http.post("/v1/responses", json=body, headers=mine).json()["id"]
    for path, method in ((response_id, "GET"), (f"{response_id}/cancel", "POST"), (response_id, "DELETE")):
        assert stack.http.request(method, f"/v1/responses/{path}", headers=others).status_code == 404
    cancelled = stack.http.post(f"/v1/responses/{response_id}/cancel", headers=mine)
    assert cancelled.json()["status"] == "cancelled"


def test_another_controller_reads_and_cancels_a_response(stack: Stack, serve: Serve) -> None:
    created = ask(stack, "hold", background=True).json()
    url = serve(redis_url=stack.server.services.settings.redis_url).url
    with httpx2.Client(base_url=url, timeout=scaled(60)) as other:
        path = f"/v1/responses/{created['id']}"
        wait_until(lambda: other.get(path).json()["status"] == "in_progress")
        assert other.post(f"{path}/cancel").json()["status"] == "cancelled"
    assert read(stack, created["id"]).json()["status"] == "cancelled"
