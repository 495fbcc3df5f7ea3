"""Completions outlive their connections. They can be resumed at an offset, reread, repeated or cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.server.conftest import Serve, Stack, text_of
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

KEY = "first-key-of-this-test"


def ask(stack: Stack, text: str, key: str, **fields: Any) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return stack.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": key})


def chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_in(response: httpx2.Response) -> str:
    return "".join(c["delta"].get("content", "") for chunk in chunks(response) for c in chunk["choices"])


def read(stack: Stack, job_id: str, headers: dict[str, str] | None = None, **query: Any) -> httpx2.Response:
    return stack.http.get(f"/v1/chat/completions/{job_id}", params=query, headers=headers)


def test_a_finished_completion_can_be_read_again(stack: Stack) -> None:
    first = stack.chat("say one two three").json()
    again = read(stack, first["id"])
    assert text_of(again) == "one two three"
    assert again.json()["usage"] == first["usage"]
    assert again.json()["model"] == MODEL


@pytest.mark.parametrize(("start", "rest"), [(0, "one two three"), (1, " two three"), (3, ""), (4, "")])
def test_a_stream_resumes_after_the_tokens_that_the_client_has(stack: Stack, start: int, rest: str) -> None:
    first = stack.chat("say one two three").json()
    by_query = read(stack, first["id"], stream="true", starting_after=start, include_usage="true")
    by_header = read(
        stack, first["id"], {"Last-Event-ID": f"{first['id']}:{start}"}, stream="true", include_usage="true"
    )
    for response in (by_query, by_header):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert text_in(response) == rest
        assert chunks(response)[-1]["usage"] == first["usage"]
        assert [c["finish_reason"] for chunk in chunks(response) for c in chunk["choices"]][-1] == "stop"
        assert response.text.endswith("data: [DONE]\n\n")


def test_an_offset_within_an_event_is_rejected(stack: Stack) -> None:
    job_id = stack.chat("say-all one two three").json()["id"]
    response = read(stack, job_id, stream="true", starting_after=1)
    assert "No event ends at token 1" in response.text
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "9" * 10])
def test_an_invalid_offset_is_rejected(stack: Stack, text: str) -> None:
    job_id = stack.chat("say one").json()["id"]
    response = read(stack, job_id, stream="true", starting_after=text)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "starting_after")


def test_the_event_id_of_another_completion_is_rejected(stack: Stack) -> None:
    job_id = stack.chat("say one").json()["id"]
    response = read(stack, job_id, {"Last-Event-ID": "chatcmpl-other:3"}, stream="true")
    assert response.status_code == 400
    assert "'chatcmpl-other:3'" in response.json()["error"]["message"]


def test_an_unknown_completion_is_not_found(stack: Stack) -> None:
    for response in (read(stack, "chatcmpl-unknown"), stack.http.delete("/v1/chat/completions/chatcmpl-x")):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "answer_not_found")


def test_a_completion_is_only_visible_to_its_api_key(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(api_keys="key-of-alice,key-of-mallory")
    alice, mallory = ({"Authorization": f"Bearer key-of-{name}"} for name in ("alice", "mallory"))
    stack.http.headers.update(alice)
    job_id = stack.chat("say one").json()["id"]
    assert read(stack, job_id, mallory).status_code == 404
    assert stack.http.delete(f"/v1/chat/completions/{job_id}", headers=mallory).status_code == 404
    assert read(stack, job_id).status_code == 200


def test_a_resumable_completion_continues_after_a_disconnect(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    with stack.http.stream(
        "POST", "/v1/chat/completions", json=body, headers={"Idempotency-Key": KEY}
    ) as first:
        job_id = json.loads(next(line for line in first.iter_lines() if "data: " in line)[6:])["id"]
    wait_until(lambda: stack.server.services.controller.num_open == 0)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(read, stack, job_id, stream="true")
        stack.worker.release.set()
        assert text_in(rest.result()) == "begun done"
    assert stack.worker.refused == set()


def test_a_completion_that_is_not_resumable_is_cancelled_after_a_disconnect(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "go-on"}], "stream": True}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as first:
        job_id = json.loads(next(line for line in first.iter_lines() if "data: " in line)[6:])["id"]
    wait_until(lambda: job_id in stack.worker.refused)
    assert read(stack, job_id).status_code == 404


def test_a_resumable_completion_is_cancelled_if_no_client_reconnects(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(orphan_grace_s=0.2)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "go-on"}], "stream": True}
    with stack.http.stream(
        "POST", "/v1/chat/completions", json=body, headers={"Idempotency-Key": KEY}
    ) as first:
        job_id = json.loads(next(line for line in first.iter_lines() if "data: " in line)[6:])["id"]
    wait_until(lambda: job_id in stack.worker.refused)


def test_a_resumable_completion_can_be_cancelled(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack()
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(ask, stack, "go-on", KEY)
        wait_until(lambda: stack.worker.assignments)
        job_id = stack.worker.assignments[0].job.job_id
        deleted = stack.http.delete(f"/v1/chat/completions/{job_id}")
        assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
        assert response.result().json()["error"]["code"] == "answer_cancelled"
    wait_until(lambda: job_id in stack.worker.refused)
    assert stack.http.delete(f"/v1/chat/completions/{job_id}").status_code == 404


def test_deleting_a_completion_deletes_all_its_choices(stack: Stack) -> None:
    job_id = stack.chat("say one", n=3).json()["id"]
    choices = [assignment.job.job_id for assignment in stack.worker.assignments]
    assert all(read(stack, name).status_code == 200 for name in choices)
    deleted = stack.http.delete(f"/v1/chat/completions/{job_id}").json()
    assert deleted == {"id": job_id, "object": "chat.completion.deleted", "deleted": True}
    assert [read(stack, name).status_code for name in choices] == [404] * 3
    assert stack.http.delete(f"/v1/chat/completions/{job_id}").status_code == 404


def test_a_deleted_completion_is_generated_again_for_the_same_idempotency_key(stack: Stack) -> None:
    first = ask(stack, "say one", "k-deleted").json()
    assert stack.http.delete(f"/v1/chat/completions/{first['id']}").status_code == 200
    assert text_of(ask(stack, "say one", "k-deleted")) == "one"
    assert len(stack.worker.assignments) == 2


def test_a_repeated_request_runs_once_and_returns_the_same_completion(stack: Stack) -> None:
    first, again = ask(stack, "seed", "k1"), ask(stack, "seed", "k1")
    assert text_of(first) == text_of(again)
    assert first.json()["id"] == again.json()["id"]
    assert len(stack.worker.assignments) == 1
    assert text_of(ask(stack, "seed", "k2")) != text_of(first)


def test_concurrent_repeated_requests_run_once(stack: Stack, serve: Serve) -> None:
    with ThreadPoolExecutor(4) as pool:
        responses = [pool.submit(ask, stack, "hold", "k3") for _ in range(4)]
        wait_until(lambda: stack.worker.assignments)
        stack.worker.release.set()
        assert [text_of(each.result()) for each in responses] == ["begun done"] * 4
    assert len(stack.worker.assignments) == 1


def test_a_different_request_with_the_same_key_is_a_conflict(stack: Stack) -> None:
    assert ask(stack, "say one", "k4").status_code == 200
    for fields in ({"temperature": 0.5}, {"max_tokens": 7}):
        response = ask(stack, "say one", "k4", **fields)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_idempotency_keys_are_separate_for_each_tenant(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(api_keys="key-of-alice,key-of-bobby")
    for name in ("alice", "bobby"):
        stack.http.headers["Authorization"] = f"Bearer key-of-{name}"
        assert text_of(ask(stack, f"say {name}", "k5")) == name


@pytest.mark.parametrize("key", ["", "a b", "k" * 256])
def test_an_invalid_idempotency_key_is_rejected(stack: Stack, key: str) -> None:
    assert ask(stack, "say one", key).status_code == 400


def test_every_choice_of_a_repeated_request_is_the_same(stack: Stack) -> None:
    first, again = (ask(stack, "seed", "k6", n=3).json()["choices"] for _ in range(2))
    assert [c["message"]["content"] for c in first] == [c["message"]["content"] for c in again]
    assert len(stack.worker.assignments) == 3
