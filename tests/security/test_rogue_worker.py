"""Controllers log and ignore malformed data written to the queue by a compromised worker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.server.conftest import Serve, Stack, text_of
from tests.waiting import wait_until

OwnStack = Callable[..., Stack]
MALFORMED = [b"", b"\xc1", b"\x93\x00\x90\xa2\xff\xfe", b"\x80", b"\x93\x00", b"x" * 100_000]


@pytest.fixture
def queue(queue_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(queue_url) as client:
        yield client


def stream_of(queue: Any) -> str:
    """Return the key of the only controller's event stream."""
    (controller_id,) = queue.zrange("{lv}:controllers", 0, -1)
    return f"{{lv}}:out:{controller_id.decode()}"


def test_malformed_heartbeats_do_not_hide_other_workers(
    own_stack: OwnStack, queue: Any, serve: Serve
) -> None:
    stack = own_stack()
    for number, announcement in enumerate(MALFORMED):
        queue.zadd("{lv}:workers", {f"rogue-{number}": time.time() * 1000 + 600_000})
        queue.set(f"{{lv}}:heartbeat:rogue-{number}", announcement, ex=600)
    second = serve()  # a server that has not discovered any workers yet
    wait_until(lambda: stack.http.get(f"{second.url}/readyz").status_code == 200)
    assert stack.works()


def test_malformed_events_do_not_disturb_other_streams(own_stack: OwnStack, queue: Any) -> None:
    stack, rng = own_stack(), random.Random(1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, "hold")
        wait_until(lambda: queue.exists(stream_of(queue)))
        job_id = stack.worker.assignments[-1].job.job_id
        for name in (b"", b"\xff\xfe 0", b"no offset", b"job -1", b"job " + b"9" * 400, rng.randbytes(30)):
            queue.xadd(stream_of(queue), {name: rng.randbytes(30)})
        queue.xadd(stream_of(queue), {f"{job_id} ?": b"", "unknown 0": b"\xc1"})
        stack.worker.release.set()
        assert text_of(held.result()) == "begun done"
    assert stack.works()


@pytest.mark.parametrize("payload", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_event_fails_only_its_own_stream(own_stack: OwnStack, queue: Any, payload: bytes) -> None:
    stack = own_stack()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(stack.chat, "hold")
        wait_until(lambda: queue.exists(stream_of(queue)))
        job_id = stack.worker.assignments[-1].job.job_id
        queue.xadd(stream_of(queue), {f"{job_id} 1": payload})
        response = held.result()
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        stack.worker.release.set()
    assert stack.works()
