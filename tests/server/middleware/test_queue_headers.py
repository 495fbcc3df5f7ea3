"""An answer's head tells how long the queue was when its request came."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from llava_server.api.chat.handler import queue_headers
from llava_wire.controller_side.queue_status import QueuePosition

from tests.server.conftest import Stack
from tests.server.scripted_worker import MODEL
from tests.waiting import wait_until

POSITION, ESTIMATE = "x-queue-position", "x-queue-estimate-s"


def place_of(response: httpx2.Response) -> tuple[str | None, str | None]:
    return response.headers.get(POSITION), response.headers.get(ESTIMATE)


@pytest.mark.parametrize("is_stream", [False, True])
def test_who_finds_nobody_waiting_is_told_so(stack: Stack, is_stream: bool) -> None:
    assert place_of(stack.chat("say one", stream=is_stream)) == ("0", "0.000")


def test_every_dialect_is_told(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "say one"}], "max_tokens": 9}
    assert place_of(stack.http.post("/v1/messages", json=body)) == ("0", "0.000")


@pytest.mark.parametrize(
    ("place", "headers"),
    [
        (QueuePosition(3, 4.25), {POSITION: "3", ESTIMATE: "4.250"}),
        (QueuePosition(3, None), {POSITION: "3"}),
        (None, {}),
    ],
    ids=str,
)
def test_what_is_not_known_is_left_out(place: QueuePosition | None, headers: dict[str, str]) -> None:
    assert queue_headers(place) == headers


def test_who_joins_an_answer_under_way_has_no_place_in_the_queue(stack: Stack) -> None:
    headers = {"Idempotency-Key": "one-place-for-two"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}]}
    with ThreadPoolExecutor(2) as pool:
        path = "/v1/chat/completions"
        asked = [pool.submit(stack.http.post, path, json=body, headers=headers) for _ in range(2)]
        wait_until(lambda: stack.worker.assignments)
        stack.worker.release.set()
        places = [each.result().headers.get(POSITION) for each in asked]
    assert sorted(places, key=str) == ["0", None]
