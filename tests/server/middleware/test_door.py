"""Who may come in, how many at once, and what they are told when they may not."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llava_server.middleware.auth import ANONYMOUS, ApiKeys
from starlette.routing import Route

from tests.server.conftest import Stack, text_of
from tests.server.image_files import encoded, part, scene
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

OwnStack = Callable[..., Stack]
KEY, OTHER_KEY = "key-of-tenant-a", "key-of-tenant-b"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def chat_as(stack: Stack, key: str, content: Any = "say yes", **fields: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
    return stack.http.post("/v1/chat/completions", json=body, headers=bearer(key))


@pytest.fixture
def keyed(own_stack: OwnStack) -> Stack:
    return own_stack(api_keys=(KEY, OTHER_KEY))


def test_every_route_but_the_public_ones_needs_a_key(keyed: Stack) -> None:
    public = {"/", "/playground/{name}", "/livez", "/readyz", "/docs", "/openapi.json"}
    paths = {route.path for route in keyed.server.app.routes if isinstance(route, Route)}
    paths |= set(keyed.server.app.openapi()["paths"])
    assert "/v1/chat/completions" in paths
    for path in paths - public:
        for method in ("GET", "POST", "DELETE"):
            assert keyed.http.request(method, path).status_code == 401, (method, path)
    for path in ("//v1/models", "/v1/models/", "/%2e/v1/models", "/playground/../v1/models", "/nowhere"):
        assert keyed.http.get(path).status_code == 401, path
    assert keyed.http.get("/livez").status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer", f"Basic {KEY}", "Bearer wrong", f"{KEY}"])
def test_wrong_credentials_are_a_401_in_openais_shape(keyed: Stack, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    response = keyed.http.get("/v1/models", headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
    assert response.headers["www-authenticate"] == "Bearer"


def test_keys_are_told_apart_and_pictures_are_not_shared_between_them(keyed: Stack) -> None:
    picture = [part(encoded(scene())), {"type": "text", "text": "look"}]
    for key in (KEY, OTHER_KEY, KEY):
        assert chat_as(keyed, key, picture).status_code == 200
    first, other, again = (assignment.job for assignment in keyed.worker.assignments)
    assert first.tenant == again.tenant != other.tenant
    assert first.images[0].digest == again.images[0].digest != other.images[0].digest
    assert KEY not in repr(first)


def test_public_pictures_are_shared_with_public_ones_of_every_key_and_no_others(keyed: Stack) -> None:
    picture = [part(encoded(scene())), {"type": "text", "text": "look"}]
    for key in (KEY, OTHER_KEY):
        for scope in ("public", "tenant"):
            assert chat_as(keyed, key, picture, cache_scope=scope).status_code == 200
    jobs = [assignment.job for assignment in keyed.worker.assignments]
    assert [job.cache_scope for job in jobs] == ["public", "tenant"] * 2
    public, own, other_public, others_own = (job.images[0].digest for job in jobs)
    assert public == other_public
    assert len({public, own, others_own}) == 3


def test_without_keys_everyone_is_anonymous(stack: Stack) -> None:
    assert text_of(stack.chat("say yes")) == "yes"
    assert stack.worker.assignments[-1].job.tenant == ANONYMOUS


def test_key_table_holds_no_key() -> None:
    keys = ApiKeys([KEY], is_required=True)
    assert KEY not in repr(vars(keys))
    assert asyncio.run(keys.find_tenant(KEY)) is not None
    assert asyncio.run(keys.find_tenant(f"{KEY}x")) is None


def test_full_queue_is_a_503_that_says_when_to_come_again(own_stack: OwnStack) -> None:
    stack = own_stack(max_queued=1)
    stack.worker.stop()  # still announced for a few seconds, but takes nothing any more
    announce_again(stack)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stack.chat, "say first")
        controller = stack.server.services.controller
        wait_until(lambda: controller.num_open == 1)
        responses = wait_until(lambda: [r for r in [stack.chat("say second")] if r.status_code == 503])
        error = responses[0].json()["error"]
        assert (error["code"], error["type"]) == ("queue_full", "server_error")
        assert int(responses[0].headers["retry-after"]) >= 1
        assert error["retry_after_ms"] > 0
        stack.worker = type(stack.worker)(stack.worker._url).start()
        try:
            assert text_of(waiting.result()) == "first"
        finally:
            stack.worker.stop()


def test_tenant_over_its_share_is_a_429_while_others_are_served(own_stack: OwnStack) -> None:
    stack = own_stack(api_keys=(KEY, OTHER_KEY), max_tenant_jobs=1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(chat_as, stack, KEY, "hold")
        wait_until(lambda: stack.worker.assignments)
        response = chat_as(stack, KEY)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        assert chat_as(stack, OTHER_KEY).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def test_too_many_open_requests_are_a_503(own_stack: OwnStack) -> None:
    stack = own_stack(max_open_requests=1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, "hold")
        wait_until(lambda: stack.worker.assignments)
        response = stack.chat("say yes")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
        assert stack.http.get("/livez").status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200
    assert stack.works()


def test_body_over_the_limit_is_a_413_before_it_has_come(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=1)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    url = stack.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head + b"Content-Length: 99999999\r\n\r\n{")
        assert b" 413 " in connection.recv(65536).partition(b"\r\n")[0]
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(17):
            connection.sendall(chunk)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert b" 413 " in answer.partition(b"\r\n")[0]
        assert b"request_too_large" in answer
    assert stack.works()


def test_uploads_of_all_requests_together_are_bounded(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=2, max_inflight_body_mb=1)
    response = stack.chat("x" * (1024 * 1024 + 10))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert stack.works()


def test_upload_is_not_counted_any_more_while_its_answer_streams(own_stack: OwnStack) -> None:
    stack = own_stack(max_body_mb=1, max_inflight_body_mb=1)
    padding = [{"type": "text", "text": "x" * 600_000}]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, [*padding, {"type": "text", "text": "hold"}])
        wait_until(lambda: stack.worker.assignments)
        assert stack.chat([*padding, {"type": "text", "text": "say yes"}]).status_code == 200
        stack.worker.release.set()
        assert held.result().status_code == 200


def test_body_that_drips_is_a_408(own_stack: OwnStack) -> None:
    stack = own_stack(body_timeout_s=0.1)
    url = stack.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert b" 408 " in connection.recv(65536).partition(b"\r\n")[0]


def test_model_without_a_live_worker_is_a_503_and_still_listed(own_stack: OwnStack) -> None:
    stack = own_stack()
    stack.worker.stop()
    registry = stack.server.services.registry
    wait_until(lambda: registry.num_workers(MODEL) == 0)
    response = stack.chat("say yes")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"
    assert response.headers["retry-after"] == "5"
    listed = stack.http.get("/v1/models").json()["data"]
    assert [(model["id"], model["num_workers"]) for model in listed] == [(MODEL, 0)]
    assert stack.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "given", ["a" * 65, "with space", "semi;colon", "ümlaut".encode().decode("latin-1"), ""]
)
def test_foreign_request_id_that_is_not_plain_is_replaced(stack: Stack, given: str) -> None:
    response = stack.http.get("/livez", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert re.fullmatch(r"req-[0-9a-f]{24}", response.headers["x-request-id"])


def test_plain_request_id_is_kept_in_header_and_error(stack: Stack) -> None:
    response = stack.http.get("/nowhere", headers={"x-request-id": "my-id_1"})
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "my-id_1"


def test_wrong_address_and_method_are_answered_in_openais_shape(stack: Stack) -> None:
    nowhere = stack.http.get("/v1/nothing")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
    method = stack.http.get("/v1/chat/completions")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"


def test_header_without_end_does_not_grow_for_ever(stack: Stack) -> None:
    url = stack.http.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert b" 400 " in connection.recv(65536).partition(b"\r\n")[0]


def test_logs_hold_neither_prompt_nor_key_nor_picture(
    own_stack: OwnStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    stack = own_stack(api_keys=(KEY,))
    canary = "canary-in-the-prompt"
    chat_as(stack, KEY, f"say {canary}")
    chat_as(stack, KEY, [{"type": "text", "text": canary}, part(f"data:image/png;base64,{canary}")])
    chat_as(stack, KEY, "refuse internal_error")
    stack.http.post("/v1/chat/completions", content=json.dumps({"messages": canary}), headers=bearer(KEY))

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("llava_")]

    wait_until(lambda: sum("/v1/chat/completions" in line for line in lines()) == 4)  # behind the answers
    assert any("job_id=chatcmpl-" in line for line in lines())
    assert any("error=invalid_image_url" in line for line in lines())
    assert not [line for line in lines() if canary in line or KEY in line]


def announce_again(stack: Stack) -> None:
    """The registry sees a live worker although none pulls."""
    from llava_wire.worker_side.consumer import JobConsumer

    async def announce() -> None:
        consumer = await JobConsumer.connect(stack.worker._url, stack.worker._heartbeat, lease_s=60)
        await consumer.send_heartbeat()
        await consumer.aclose()

    asyncio.run(announce())


def test_unforeseen_failure_is_a_500_with_an_id_and_without_details(
    own_stack: OwnStack, caplog: pytest.LogCaptureFixture
) -> None:
    stack = own_stack()

    async def boom() -> None:
        raise RuntimeError("secret detail at 0xdeadbeef")

    stack.server.app.add_api_route("/boom", boom)
    response = stack.http.get("/boom")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert error["request_id"] in error["message"]
    assert any(error["request_id"] in record.getMessage() for record in caplog.records)
    assert stack.works()
