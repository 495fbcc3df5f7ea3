"""The ``x-queue-*`` response headers: the request's position in the queue and its estimated wait time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from llava_server.api.chat.request_handler import queue_headers
from llava_wire.controller_side.query_results import QueuePosition

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

POSITION, ESTIMATE = "x-queue-position", "x-queue-estimate-s"


def position_of(response: httpx2.Response) -> tuple[str | None, str | None]:
    return response.headers.get(POSITION), response.headers.get(ESTIMATE)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_empty_queue_is_reported(stack: Stack, is_stream: bool) -> None:
    assert position_of(stack.chat("say one", stream=is_stream)) == ("0", "0.000")


def test_every_api_has_the_headers(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say one"}], "max_tokens": 9}
    assert position_of(stack.http.post("/v1/messages", json=body)) == ("0", "0.000")


@pytest.mark.parametrize(
    ("position", "headers"),
    [
        (QueuePosition(3, 4.25), {POSITION: "3", ESTIMATE: "4.250"}),
        (QueuePosition(3, None), {POSITION: "3"}),
        (None, {}),
    ],
    ids=str,
)
def test_unknown_values_are_omitted(position: QueuePosition | None, headers: dict[str, str]) -> None:
    assert queue_headers(position) == headers


def test_a_request_that_joins_a_running_job_has_no_position(stack: Stack) -> None:
    headers = {"Idempotency-Key": "one-job-for-two-requests"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}]}
    with ThreadPoolExecutor(2) as pool:
        path = "/v1/chat/completions"
        requests = [pool.submit(stack.http.post, path, json=body, headers=headers) for _ in range(2)]
        wait_until(lambda: stack.worker.assignments)
        stack.worker.release.set()
        positions = [request.result().headers.get(POSITION) for request in requests]
    assert sorted(positions, key=str) == ["0", None]
