"""A defect while reading events, caused by a key of the wrong type, ends neither streams nor the process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import redis
from llava_wire.redis.keys import PREFIX

from tests.machine_speed import scaled
from tests.server.conftest import OwnStack, Stack, text_of
from tests.waiting import wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def crashes(stack: Stack) -> float:
    return stack.server.metric("llava_task_crashes_total", task="follow")


def replace_event_stream(client: redis.Redis) -> bytes:
    """Store a string under the key of the controller's event stream, and return the key."""
    [key] = client.scan_iter(f"{PREFIX}out:*")
    assert isinstance(key, bytes)
    with client.pipeline() as pipeline:
        pipeline.delete(key)
        pipeline.set(key, "not a stream")
        pipeline.execute()
    return key


def test_streams_continue_after_a_crash_of_the_reader(
    own_stack: OwnStack, queue_url: str, pool: ThreadPoolExecutor
) -> None:
    stack = own_stack()
    with redis.Redis.from_url(queue_url) as client:
        waiting = pool.submit(stack.chat, "hold")
        wait_until(lambda: stack.worker.assignments, "the assignment")
        wait_until(lambda: stack.server.services.controller.num_open == 1)
        key = replace_event_stream(client)
        wait_until(lambda: crashes(stack) >= 1, "the crash")
        client.delete(key)
        stack.worker.release.set()
        assert text_of(waiting.result(scaled(60))) == "begun done"
    assert stack.works()
    assert httpx2.get(f"{stack.server.url}/livez", timeout=scaled(30)).status_code == 200


def test_a_damaged_job_ends_its_own_stream_only(
    own_stack: OwnStack, queue_url: str, pool: ThreadPoolExecutor
) -> None:
    stack = own_stack()
    with redis.Redis.from_url(queue_url) as client:
        damaged = pool.submit(stack.chat, "hold", max_tokens=7)
        wait_until(lambda: stack.worker.assignments, "the first assignment")
        job_id = stack.worker.assignments[0].job.job_id
        intact = pool.submit(stack.chat, "hold")
        wait_until(lambda: len(stack.worker.assignments) == 2, "the second assignment")
        client.pipeline().delete(f"{PREFIX}job:{job_id}").set(f"{PREFIX}job:{job_id}", "x").execute()
        response = damaged.result(scaled(60))
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        client.delete(f"{PREFIX}job:{job_id}")
        stack.worker.release.set()
        assert text_of(intact.result(scaled(60))) == "begun done"
    assert crashes(stack) == 0


def test_a_reader_that_cannot_be_restarted_fails_the_process(own_stack: OwnStack, queue_url: str) -> None:
    stack = own_stack()
    assert stack.works()
    with redis.Redis.from_url(queue_url) as client:
        replace_event_stream(client)
        livez = f"{stack.server.url}/livez"
        wait_until(lambda: httpx2.get(livez, timeout=scaled(30)).status_code == 500, "the failure")
    assert crashes(stack) == 5
