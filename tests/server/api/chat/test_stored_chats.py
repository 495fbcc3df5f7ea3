"""Chat completions with ``store``: OpenAI's client lists, reads, changes and deletes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import redis
from llava_wire.redis.keys import PREFIX
from openai.types.chat import ChatCompletion

from tests.machine_speed import scaled
from tests.server.api.chat.test_tools import CITY, PARIS
from tests.server.api.openapi.test_response_shapes import vendor_errors
from tests.server.batch_requests import KEYS, tenant_clients
from tests.server.conftest import OwnStack, Serve, Stack
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL
from tests.server.stored_outputs import wait_until_saved
from tests.waiting import wait_until

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]


@pytest.fixture
def stack(own_stack: OwnStack) -> Stack:
    """An empty store for each test."""
    return own_stack()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(client: openai.OpenAI, text: Any = "say yes", **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=MODEL, messages=messages, **{"store": True, **fields})


def redis_of(stack: Stack) -> redis.Redis:
    return redis.Redis.from_url(stack.server.services.settings.redis_url.get_secret_value())


def test_only_completions_with_store_are_listed(client: openai.OpenAI) -> None:
    stored = create(client, metadata={"run": "7"})
    create(client, store=False)
    create(client, store=None)
    client.responses.create(model=MODEL, input="say yes", store=True)
    [listed] = client.chat.completions.list()
    assert (listed.id, listed.choices, listed.usage) == (stored.id, stored.choices, stored.usage)
    assert listed.metadata == {"run": "7"}


def test_a_stored_completion_is_read_after_its_job_has_expired(client: openai.OpenAI, stack: Stack) -> None:
    stored = create(client, "count 2", n=3, seed=1, metadata={"run": "7"})
    wait_until_saved(stack, stored.id)
    with redis_of(stack) as queue:
        queue.delete(*queue.keys(f"{PREFIX}job:*"), *queue.keys(f"{PREFIX}log:*"))
    again = client.chat.completions.retrieve(stored.id)
    assert (again.choices, again.usage, again.model) == (stored.choices, stored.usage, MODEL)
    assert again.system_fingerprint == stored.system_fingerprint
    raw = stack.http.get(f"/v1/chat/completions/{stored.id}").json()
    assert vendor_errors(ChatCompletion, raw) == [] and raw["metadata"] == {"run": "7"}


def test_a_streamed_completion_is_stored(client: openai.OpenAI) -> None:
    chunks = list(create(client, f"say {PARIS}", tools=TOOLS, stream=True))
    [listed] = client.chat.completions.list()
    assert listed.id == chunks[0].id
    [call] = listed.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather"


def test_completions_are_paged_and_filtered(client: openai.OpenAI) -> None:
    ids = [create(client, metadata={"run": str(n % 2), "all": "1"}).id for n in range(7)]

    def listed(**query: Any) -> list[str]:
        return [each.id for each in client.chat.completions.list(**query)]

    assert listed() == listed(limit=1) == listed(limit=3, order="asc") == ids
    assert listed(limit=3, order="desc") == ids[::-1]
    assert listed(metadata={"run": "1"}, limit=2) == ids[1::2]
    assert listed(metadata={"run": "1", "all": "1"}, order="desc") == ids[1::2][::-1]
    assert listed(metadata={"run": "1", "all": "2"}) == listed(metadata={"other": "1"}) == []
    assert (listed(model=MODEL), listed(model="other")) == (ids, [])
    page = client.chat.completions.list(limit=7)
    assert page.has_more is False
    page = client.chat.completions.list(limit=3, after=ids[2])
    assert (page.has_more, [each.id for each in page.data]) == (True, ids[3:6])
    assert client.chat.completions.list(after="unknown").data == []


def test_the_metadata_is_replaced(client: openai.OpenAI, stack: Stack) -> None:
    stored = create(client, metadata={"run": "7", "old": "1"})
    changed = client.chat.completions.update(stored.id, metadata={"run": "8"})
    assert changed.metadata == {"run": "8"}
    assert client.chat.completions.retrieve(stored.id).metadata == {"run": "8"}
    assert [each.id for each in client.chat.completions.list(metadata={"run": "8"})] == [stored.id]
    assert list(client.chat.completions.list(metadata={"old": "1"})) == []
    assert client.chat.completions.update(stored.id, metadata=None).metadata == {}
    for body, param in (({}, "metadata"), ({"metadata": {"k": 5}}, "metadata.k")):
        response = stack.http.post(f"/v1/chat/completions/{stored.id}", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_the_messages_are_listed_as_they_were_sent(client: openai.OpenAI) -> None:
    image = part(encoded(scene()))
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}], "name": "Ada"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "18 degrees"},
        {"role": "user", "content": "say yes"},
    ]
    stored = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, store=True)
    found = list(client.chat.completions.messages.list(stored.id, limit=2))
    assert [each.id for each in found] == [f"{stored.id}-{index}" for index in range(5)]
    assert [each.role for each in found] == [each["role"] for each in messages]
    assert [each.content for each in found] == ["Be brief.", None, None, "18 degrees", "say yes"]
    parts: Any = found[1].content_parts
    assert parts[0].image_url.url == image["image_url"]["url"] and parts[1].text == "What is it?"
    assert found[0].content_parts is None
    calls: Any = found[2].tool_calls
    assert calls[0].function.name == "weather"
    last = client.chat.completions.messages.list(stored.id, order="desc", limit=1)
    assert (last.data[0].content, last.has_more) == ("say yes", True)
    end = client.chat.completions.messages.list(stored.id, after=f"{stored.id}-4")
    assert (end.data, end.has_more) == ([], False)


def test_a_deleted_completion_is_not_found(client: openai.OpenAI, stack: Stack) -> None:
    kept, deleted, expired = create(client), create(client, n=2), create(client)
    wait_until_saved(stack, expired.id)
    with redis_of(stack) as queue:
        queue.delete(f"{PREFIX}job:{expired.id}", f"{PREFIX}log:{expired.id}")
    for each in (deleted, expired):
        assert client.chat.completions.delete(each.id).deleted is True
        for call in (
            client.chat.completions.retrieve,
            client.chat.completions.delete,
            client.chat.completions.messages.list,
        ):
            with pytest.raises(openai.NotFoundError):
                call(each.id)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.update(each.id, metadata={})
    assert [each.id for each in client.chat.completions.list()] == [kept.id]


def test_unfinished_failed_and_cancelled_completions_are_not_listed(
    client: openai.OpenAI, stack: Stack
) -> None:
    with pytest.raises(openai.InternalServerError):
        create(client, "break internal_error")
    with pytest.raises(openai.BadRequestError):
        create(client, "refuse context_length_exceeded")
    with create(client, "go-on", stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: len(stack.worker.refused) == 1)
    with create(client, "hold", stream=True) as stream:
        held = next(iter(stream)).id
        assert list(client.chat.completions.list()) == []
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.messages.list(held)
        stack.worker.release.set()
        assert len(list(stream)) > 0
    assert [each.id for each in client.chat.completions.list()] == [held]


def test_another_key_sees_and_changes_nothing(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=",".join(KEYS))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}], "store": True}
    with tenant_clients(stack) as (alice, bob):
        path = f"/v1/chat/completions/{alice.post('/v1/chat/completions', json=body).json()['id']}"
        assert bob.get("/v1/chat/completions").json()["data"] == []
        responses = [
            bob.get(path),
            bob.get(f"{path}/messages"),
            bob.post(path, json={"metadata": {"k": "v"}}),
            bob.delete(path),
        ]
        assert [each.status_code for each in responses] == [404] * 4
        assert alice.get(path).json()["metadata"] == {}


def test_another_server_lists_the_same_completions(client: openai.OpenAI, serve: Serve) -> None:
    stored = create(client)
    other = serve(auth=False)
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        assert [each["id"] for each in http.get("/v1/chat/completions").json()["data"]] == [stored.id]
        http.delete(f"/v1/chat/completions/{stored.id}")
    assert list(client.chat.completions.list()) == []


def test_a_completion_that_is_too_large_to_store_is_rejected(own_stack: OwnStack, serve: Serve) -> None:
    other = serve(auth=False, max_stored_mb=1, max_text_kb=4096)
    own_stack()
    with httpx2.Client(base_url=other.url, timeout=scaled(60)) as http:
        wait_until(lambda: http.get("/readyz").status_code == 200)
        messages = [{"role": "user", "content": "x" * 2**20}, {"role": "user", "content": "say a"}]
        body = {"model": MODEL, "messages": messages, "store": True}
        error = http.post("/v1/chat/completions", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "store")
        assert http.post("/v1/chat/completions", json={**body, "store": False}).status_code == 200


def test_the_oldest_completions_are_removed_at_the_limit(own_stack: OwnStack) -> None:
    stack = own_stack(max_stored_mb=1)
    ids = [stack.chat(f"say {'x' * 400_000}", store=True).json()["id"] for _ in range(3)]
    listed = stack.http.get("/v1/chat/completions").json()["data"]
    assert [each["id"] for each in listed] == ids[-1:]
    assert stack.http.get("/v1/chat/completions", params={"after": ids[0]}).json()["data"] == []
