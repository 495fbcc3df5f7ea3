"""POST /v1/chat/completions: complete responses, streams, errors and disconnects."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llava_server.errors import from_job_error
from llava_wire.messages.event import ErrorCode, JobError

from tests.server.conftest import Stack, text_of
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 4,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def lines_of(stack: Stack, content: str, **fields: Any) -> list[str]:
    """Return the non-empty lines of a stream."""
    response = stack.chat(content, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return [line for line in response.text.split("\n") if line]


def chunks_of(lines: list[str]) -> list[Any]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_completion_has_openais_format(stack: Stack) -> None:
    completion = stack.chat("say one two three").json()
    job = stack.worker.assignments[-1].job
    assert completion.pop("created") > 1_700_000_000
    assert completion.pop("system_fingerprint").startswith("fp_")
    assert completion == {
        "id": job.job_id,
        "object": "chat.completion",
        "model": MODEL,
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one two three", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert job.job_id.startswith("chatcmpl-")
    assert len(job.job_id) == len("chatcmpl-") + 32


def test_a_completion_that_reaches_its_limit_has_finish_reason_length(stack: Stack) -> None:
    choice = stack.chat("count 3").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("1 2 3", "length")


def test_a_stream_has_the_role_the_text_the_finish_reason_and_done(stack: Stack) -> None:
    lines = lines_of(stack, "say one two three")
    chunks = chunks_of(lines)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "one two three"
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert lines[-1] == "data: [DONE]"


def test_event_ids_contain_the_job_id_and_the_token_offset(stack: Stack) -> None:
    lines = lines_of(stack, "say one two three")
    job_id = stack.worker.assignments[-1].job.job_id
    ids = [line for line in lines if line.startswith("id: ")]
    assert ids == [f"id: {job_id}:{offset}" for offset in (1, 2, 3, 4)]


def test_an_output_in_one_event_is_streamed_with_its_id_on_the_last_chunk(stack: Stack) -> None:
    lines = lines_of(stack, "say-all a b c")
    chunks = chunks_of(lines)
    assert [line.rpartition(":")[2] for line in lines if line.startswith("id: ")] == ["3"]
    assert '"finish_reason":"stop"' in lines[lines.index(next(x for x in lines if x.startswith("id: "))) + 1]
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "a b c", None]


def test_requested_usage_is_sent_once_at_the_end(stack: Stack) -> None:
    chunks = chunks_of(lines_of(stack, "say one two three", stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == USAGE
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_non_ascii_text_is_preserved_with_and_without_streaming(stack: Stack) -> None:
    text = 'Grüße 你好 🦙 "quoted" \u2028 end'
    assert text_of(stack.chat(f"say-all {text}")) == text
    chunks = chunks_of(lines_of(stack, f"say-all {text}"))
    assert chunks[1]["choices"][0]["delta"]["content"] == text


FAILURES = {
    "context_length_exceeded": 400,
    "invalid_request": 400,
    "insufficient_memory": 503,
    "deadline_exceeded": 504,
    "worker_crashed": 500,
    "internal_error": 500,
}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_failure_before_the_first_token_is_an_http_error_with_and_without_streaming(
    stack: Stack, is_stream: bool
) -> None:
    for code, status in FAILURES.items():
        response = stack.chat(f"refuse {code}", stream=is_stream)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert error["message"] == f"scripted failure {code}"
        assert error["request_id"] == response.headers["x-request-id"], code
        assert stack.works(), code


@pytest.mark.parametrize(
    ("code", "field", "param"),
    [
        (ErrorCode.INVALID_REQUEST, "logit_bias", "logit_bias"),
        (ErrorCode.INVALID_REQUEST, None, "messages"),
        (ErrorCode.CONTEXT_LENGTH_EXCEEDED, None, "messages"),
        (ErrorCode.INTERNAL_ERROR, None, None),
    ],
)
def test_an_error_has_the_field_that_the_worker_reports(
    code: ErrorCode, field: str | None, param: str | None
) -> None:
    assert from_job_error(JobError(code, "no", field), "messages").param == param


def test_a_failure_during_a_stream_is_an_error_event_without_done(stack: Stack) -> None:
    lines = lines_of(stack, "break worker_crashed")
    assert json.loads(lines[-1][6:])["error"]["code"] == "worker_crashed"
    assert "data: [DONE]" not in lines
    assert any('"half "' in line for line in lines)
    assert stack.works()


def test_a_failure_during_generation_is_an_http_error_without_streaming(stack: Stack) -> None:
    response = stack.chat("break internal_error")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def test_disconnecting_from_a_stream_cancels_the_job(stack: Stack) -> None:
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "go-on"}]}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        next(response.iter_bytes())
    job_id = stack.worker.assignments[-1].job.job_id
    wait_until(lambda: job_id in stack.worker.refused)
    assert stack.works()


def test_disconnecting_before_the_first_token_cancels_the_job(stack: Stack) -> None:
    url = stack.http.base_url
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "silent"}]}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: stack.worker.assignments)
    controller = stack.server.services.controller
    wait_until(lambda: controller.num_open == 0)
    stack.worker.release.set()
    wait_until(lambda: stack.worker.assignments[-1].job.job_id in stack.worker.refused)


def test_the_job_of_a_connected_client_is_not_cancelled(stack: Stack) -> None:
    cancelled = stack.server.metric("llava_requests_cancelled_total")
    assert stack.works()
    lines_of(stack, "say a b")
    assert stack.server.metric("llava_requests_cancelled_total") == cancelled
    assert not stack.worker.refused & {assignment.job.job_id for assignment in stack.worker.assignments}


def test_an_idle_stream_sends_keepalive_comments(own_stack: Callable[..., Stack]) -> None:
    stack = own_stack(keepalive_s=0.05)
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hold"}]}
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert any(line == ": keepalive" for line in lines)
        stack.worker.release.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_a_request_that_no_worker_takes_in_time_is_a_408_that_should_be_retried(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack(queue_timeout_s=0.1)
    response = stack.chat("silent")
    assert (response.status_code, response.json()["error"]["code"]) == (408, "queue_timeout")
    assert response.headers["x-should-retry"] == "true"


def test_a_request_that_exceeds_its_deadline_is_a_504_that_should_not_be_retried(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack(request_timeout_s=0.3)
    response = stack.chat("hold")
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"


def test_concurrent_requests_receive_their_own_outputs(stack: Stack) -> None:
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda n: text_of(stack.chat(f"count {n}")), range(1, 17)))
    assert texts == [" ".join(str(i) for i in range(1, n + 1)) for n in range(1, 17)]
