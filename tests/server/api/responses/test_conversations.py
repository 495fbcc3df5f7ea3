"""previous_response_id and item_reference with OpenAI's client: conversations are stored and continued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.machine_speed import scaled
from tests.server.api.chat.test_tools import PARIS
from tests.server.api.responses.test_responses import WEATHER
from tests.server.batch_requests import KEYS, tenant_clients
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.image_files import data_url, encoded, scene
from tests.server.scripted_worker import MODEL
from tests.server.stored_outputs import wait_until_saved
from tests.waiting import wait_until

IMAGE: Any = {"type": "input_image", "image_url": data_url(encoded(scene())), "detail": "low"}


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def redis_of(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.server.services.settings.redis_url.get_secret_value())


def roles_and_texts(stack: Stack) -> list[tuple[str, str]]:
    """Return the messages of the last job."""
    return [
        (message.role, " ".join(part if isinstance(part, str) else "[image]" for part in message.parts))
        for message in stack.worker.assignments[-1].job.messages
    ]


def expire_job(stack: Stack, response_id: str) -> None:
    """Delete a job as if it had expired five minutes after its end."""
    with redis_of(stack) as queue:
        number = response_id.removeprefix("resp_")
        assert queue.delete(f"{PREFIX}job:chatcmpl-{number}", f"{PREFIX}log:chatcmpl-{number}")


def test_the_input_and_output_of_all_previous_responses_precede_the_input(
    client: openai.OpenAI, stack: Stack
) -> None:
    first = client.responses.create(model=MODEL, input=[{"role": "user", "content": [IMAGE]}])
    second = client.responses.create(model=MODEL, input="say two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    with client.responses.stream(model=MODEL, input="say three", previous_response_id=second.id) as stream:
        third = stream.get_final_response()
    assert third.output_text == "three"
    assert roles_and_texts(stack) == [
        ("user", "[image]"),
        ("assistant", first.output_text),
        ("user", "say two"),
        ("assistant", "two"),
        ("user", "say three"),
    ]
    client.responses.create(model=MODEL, input="say four", previous_response_id=third.id)
    assert roles_and_texts(stack)[-2:] == [("assistant", "three"), ("user", "say four")]


def test_a_conversation_can_be_continued_without_input(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="say one")
    second = client.responses.create(model=MODEL, previous_response_id=first.id)
    assert roles_and_texts(stack)[-3:] == [("user", "say one"), ("assistant", "one"), ("user", "")]
    third = client.responses.create(model=MODEL, input="say three", previous_response_id=second.id)
    assert third.output_text == "three"
    with pytest.raises(openai.BadRequestError, match="input is required"):
        client.responses.create(model=MODEL)


def test_instructions_are_not_carried_over(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="say one", instructions="Be brief.")
    client.responses.create(
        model=MODEL, input="say two", instructions="Be long.", previous_response_id=first.id
    )
    assert roles_and_texts(stack)[0] == ("system", "Be long.")
    assert "Be brief." not in str(stack.worker.assignments[-1].job.messages)


def test_the_result_of_a_previous_function_call_can_be_sent(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input=f"say {PARIS}", tools=[WEATHER])
    [call] = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    client.responses.create(model=MODEL, input=[result], tools=[WEATHER], previous_response_id=first.id)
    assert [role for role, _ in roles_and_texts(stack)][-3:] == ["user", "assistant", "user"]
    assert "18 degrees" in roles_and_texts(stack)[-1][1]


def test_two_responses_can_continue_the_same_one(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="say one")
    for text in ("say two", "say three"):
        client.responses.create(model=MODEL, input=text, previous_response_id=first.id)
        assert roles_and_texts(stack) == [("user", "say one"), ("assistant", "one"), ("user", text)]


def test_a_chain_of_100_responses_is_continued(client: openai.OpenAI, stack: Stack) -> None:
    previous: str | None = None
    for number in range(100):
        previous = client.responses.create(
            model=MODEL, input=f"say {number}", previous_response_id=previous
        ).id
    messages = roles_and_texts(stack)
    assert len(messages) == 199
    assert messages[::2] == [("user", f"say {number}") for number in range(100)]


def test_a_chain_with_too_many_items_is_rejected(client: openai.OpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "say a"}] * 600
    first = client.responses.create(model=MODEL, input=items)
    with pytest.raises(openai.BadRequestError, match="limit is 1024") as error:
        client.responses.create(model=MODEL, input=items, previous_response_id=first.id)
    assert error.value.param == "previous_response_id"


def test_a_conversation_is_continued_after_its_jobs_have_expired(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="say one")
    wait_until_saved(stack, first.id)
    expire_job(stack, first.id)
    client.responses.create(model=MODEL, input="say two", previous_response_id=first.id)
    assert roles_and_texts(stack) == [("user", "say one"), ("assistant", "one"), ("user", "say two")]
    stored = client.responses.retrieve(first.id)
    assert (stored.output_text, stored.status, stored.usage) == ("one", "completed", first.usage)
    assert client.responses.cancel(first.id).status == "completed"
    with pytest.raises(openai.NotFoundError, match="Retrieve it without stream"):
        client.responses.retrieve(first.id, stream=True)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_streamed_and_background_responses_are_saved_although_no_client_reads_them(
    client: openai.OpenAI, stack: Stack
) -> None:
    background = client.responses.create(model=MODEL, input="say one", background=True)
    with client.responses.create(model=MODEL, input="hold", background=True, stream=True) as stream:
        streamed = next(iter(stream)).response  # type: ignore[union-attr]
    stack.worker.release.set()
    for response_id, text in ((background.id, "one"), (streamed.id, "begun done")):
        wait_until_saved(stack, response_id)
        expire_job(stack, response_id)
        assert client.responses.retrieve(response_id).output_text == text
        client.responses.create(model=MODEL, input="say two", previous_response_id=response_id)
        assert roles_and_texts(stack)[1] == ("assistant", text)


@pytest.mark.parametrize("question", ["hold", "break internal_error", "go-on"])
def test_only_completed_responses_are_continued(client: openai.OpenAI, stack: Stack, question: str) -> None:
    created = client.responses.create(model=MODEL, input=question, background=True)
    statuses = {"hold": "in_progress", "break internal_error": "failed", "go-on": "cancelled"}
    if question == "go-on":
        wait_until(lambda: client.responses.retrieve(created.id).status == "in_progress")
        client.responses.cancel(created.id)
    wait_until(lambda: client.responses.retrieve(created.id).status == statuses[question])
    with pytest.raises(openai.BadRequestError, match=f"has the status {statuses[question]}") as error:
        client.responses.create(model=MODEL, input="say two", previous_response_id=created.id)
    assert error.value.param == "previous_response_id"
    stack.worker.release.set()


def test_an_incomplete_response_is_continued(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input="count 2")
    assert first.status == "incomplete"
    client.responses.create(model=MODEL, input="say two", previous_response_id=first.id)
    assert roles_and_texts(stack)[1] == ("assistant", "1 2")


def test_unstored_deleted_and_unknown_responses_are_not_found(client: openai.OpenAI, stack: Stack) -> None:
    deleted = client.responses.create(model=MODEL, input="say one").id
    client.responses.delete(deleted)
    unstored = client.responses.create(model=MODEL, input="say one", store=False).id
    failed = client.responses.create(model=MODEL, input="say one", stream=False)
    chat = stack.chat("say yes").json()["id"].replace("chatcmpl-", "resp_")
    assert failed.status == "completed"
    for missing in (deleted, unstored, chat, "resp_x", "x"):
        with pytest.raises(openai.NotFoundError) as error:
            client.responses.create(model=MODEL, input="say two", previous_response_id=missing)
        assert (error.value.code, error.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )
        assert missing in error.value.message


def test_a_deleted_response_in_the_middle_of_a_conversation_is_named(client: openai.OpenAI) -> None:
    ids: list[str] = []
    for _ in range(3):
        previous = ids[-1] if ids else None
        ids.append(client.responses.create(model=MODEL, input="say one", previous_response_id=previous).id)
    client.responses.delete(ids[1])
    with pytest.raises(openai.NotFoundError, match=f"contains the response '{ids[1]}'") as error:
        client.responses.create(model=MODEL, input="say two", previous_response_id=ids[2])
    assert error.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError, match=f"contains the response '{ids[1]}'"):
        client.responses.input_items.list(ids[2])
    assert client.responses.create(model=MODEL, input="say two", previous_response_id=ids[0])


def test_another_key_cannot_continue_or_list_a_conversation(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    with tenant_clients(stack) as (alice, bob):
        body = {"model": MODEL, "input": "say one"}
        first = alice.post("/v1/responses", json=body).json()["id"]
        continued = {**body, "previous_response_id": first}
        reference = {
            **body,
            "input": [{"type": "item_reference", "id": first.replace("resp_", "msg_") + "_0"}],
        }
        for request in (continued, reference):
            assert alice.post("/v1/responses", json=request).status_code == 200
            assert bob.post("/v1/responses", json=request).status_code == 404
            assert bob.post("/v1/responses/input_tokens", json=request).status_code == 404
        assert alice.get(f"/v1/responses/{first}/input_items").status_code == 200
        assert bob.get(f"/v1/responses/{first}/input_items").status_code == 404


def test_a_conversation_continues_on_another_server_after_a_restart(stack: Stack, serve: Serve) -> None:
    first = stack.http.post("/v1/responses", json={"model": MODEL, "input": "say one"}).json()
    other = serve(redis_url=stack.server.services.settings.redis_url, auth=False)
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        body = {"model": MODEL, "input": "say two", "previous_response_id": first["id"]}
        assert http.post("/v1/responses", json=body).status_code == 200
        assert roles_and_texts(stack) == [("user", "say one"), ("assistant", "one"), ("user", "say two")]


def test_a_response_is_saved_by_another_server_if_its_own_stops(serve: Serve, own_stack: OwnStack) -> None:
    stack = own_stack()
    other = serve(auth=False)
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        body = {"model": MODEL, "input": "hold", "background": True}
        created = http.post("/v1/responses", json=body).json()["id"]
        wait_until(lambda: stack.worker.assignments != [])
    other.stop()
    stack.worker.release.set()
    wait_until_saved(stack, created)
    body = {"model": MODEL, "input": "say two", "previous_response_id": created}
    assert stack.http.post("/v1/responses", json=body).status_code == 200
    assert roles_and_texts(stack)[1] == ("assistant", "begun done")


def test_a_request_that_is_rejected_leaves_no_record(stack: Stack) -> None:
    with redis_of(stack) as queue:
        before = set(queue.keys(f"{PREFIX}response:*"))
        for body in (
            {"model": MODEL, "input": "refuse context_length_exceeded"},
            {"model": "unknown", "input": "say one"},
            {"model": MODEL, "input": "say one", "previous_response_id": "resp_x"},
            {"model": MODEL, "input": "say one", "store": False},
        ):
            stack.http.post("/v1/responses", json=body)
        assert set(queue.keys(f"{PREFIX}response:*")) == before


def test_an_input_that_is_too_large_is_not_stored_unless_requested(own_stack: OwnStack) -> None:
    stack = own_stack(max_stored_mb=1, max_text_kb=4096)
    body = {
        "model": MODEL,
        "input": [{"role": "user", "content": "x" * 2**20}, {"role": "user", "content": "say a"}],
    }
    response = stack.http.post("/v1/responses", json=body).json()
    assert (response["status"], response["store"]) == ("completed", False)
    assert stack.http.get(f"/v1/responses/{response['id']}").status_code == 404
    for fields in ({"store": True}, {"background": True}):
        error = stack.http.post("/v1/responses", json={**body, **fields}).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "store")
        assert "the limit is 1048576 bytes" in error["message"]


def test_a_repeated_request_with_an_idempotency_key_is_stored_once(stack: Stack) -> None:
    headers, body = {"idempotency-key": "stored-once"}, {"model": MODEL, "input": "say one"}
    first, second = (stack.http.post("/v1/responses", json=body, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    conflict = stack.http.post("/v1/responses", json={**body, "input": "say two"}, headers=headers)
    assert conflict.status_code == 409
    stack.http.post("/v1/responses", json={**body, "previous_response_id": first["id"]})
    assert roles_and_texts(stack) == [("user", "say one"), ("assistant", "one"), ("user", "say one")]


def test_an_item_reference_is_replaced_by_the_stored_item(client: openai.OpenAI, stack: Stack) -> None:
    first = client.responses.create(model=MODEL, input=[{"role": "user", "content": [IMAGE]}])
    [question] = client.responses.input_items.list(first.id).data
    references: list[Any] = [
        {"type": "item_reference", "id": question.id},
        {"id": first.output[0].id},
        {"role": "user", "content": "say two"},
    ]
    second = client.responses.create(model=MODEL, input=references)
    assert roles_and_texts(stack) == [
        ("user", "[image]"),
        ("assistant", first.output_text),
        ("user", "say two"),
    ]
    client.responses.delete(first.id)  # the second response has copies of the items
    client.responses.create(model=MODEL, input="say three", previous_response_id=second.id)
    assert roles_and_texts(stack)[0] == ("user", "[image]")


@pytest.mark.parametrize("item_id", ["msg_x", "msg_" + "0" * 32 + "_0", "x"])
def test_an_unknown_item_reference_is_an_error_that_names_it(client: openai.OpenAI, item_id: str) -> None:
    items: list[Any] = [{"role": "user", "content": "say a"}, {"type": "item_reference", "id": item_id}]
    with pytest.raises(openai.NotFoundError, match=item_id) as error:
        client.responses.create(model=MODEL, input=items)
    assert (error.value.code, error.value.param) == ("item_not_found", "input[1].id")


def test_a_conversation_object_is_rejected_with_the_alternative(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Use previous_response_id") as error:
        client.responses.create(model=MODEL, input="say a", conversation="conv_1")
    assert error.value.param == "conversation"
