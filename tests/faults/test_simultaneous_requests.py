"""Hundreds of simultaneous requests share the connections to the queue, and none of them is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, story
from tests.server.image_files import encoded, part, scene

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_REQUESTS = 500
NUM_IMAGES = 20


@pytest.fixture(scope="module")
def wide_cluster() -> Iterator[Cluster]:
    """A cluster whose limits are above the number of requests."""
    names = ("max_tenant_jobs", "max_tenant_requests", "max_queued")
    limits = dict.fromkeys(names, 2 * NUM_REQUESTS)
    with running_cluster(
        num_controllers=1, num_workers=1, server=limits, worker={"max_num_sequences": 64, "echo_step_s": 0}
    ) as cluster:
        yield cluster


def text_fields(_: int) -> dict[str, Any]:
    return {}


def image_fields(number: int) -> dict[str, Any]:
    image = part(encoded(scene(40 + number % NUM_IMAGES, 20)))
    return {"messages": [{"role": "user", "content": [image, {"type": "text", "text": story(number)}]}]}


@pytest.mark.parametrize("fields", [text_fields, image_fields])
async def test_no_simultaneous_request_is_told_that_the_queue_is_unavailable(
    wide_cluster: Cluster, streams: Streams, fields: Any
) -> None:
    wide_cluster.restore()
    (url,) = wide_cluster.urls
    started = [
        streams.start(url, story(number), max_tokens=3, **fields(number)) for number in range(NUM_REQUESTS)
    ]
    await streams.wait_for_all()
    errors = [(stream.status, stream.error) for stream in started if stream.error]
    log = wide_cluster.controllers[0].log
    assert not errors, f"{len(errors)} errors, such as {errors[0]}; end of the server's log:\n{log[-2000:]}"
    assert {(stream.finish_reason, stream.has_done_event) for stream in started} == {("length", True)}
