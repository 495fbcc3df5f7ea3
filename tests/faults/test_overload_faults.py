"""Ten times more than there is room for: some are answered, the others are told when to come again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, question
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

MAX_RUNNING, MAX_QUEUED = 4, 6
NUM_ASKED = 100


@pytest.fixture
def narrow_cluster() -> Iterator[Cluster]:
    with running_cluster(
        num_workers=1,
        server={"max_queued": MAX_QUEUED, "max_open_requests": 64},
        worker={"max_num_sequences": MAX_RUNNING},
    ) as cluster:
        yield cluster


async def test_of_ten_times_too_many_requests_each_is_answered_or_refused_with_a_time(
    narrow_cluster: Cluster, streams: Streams
) -> None:
    urls = [controller.url for controller in narrow_cluster.controllers]
    first = streams.ask(urls[0], question("first"), max_tokens=60)  # by which the rate is measured
    await async_wait_until(lambda: first.is_over, "an answer")
    asked = [streams.ask(urls[index % 2], question(index), max_tokens=60) for index in range(NUM_ASKED)]
    await streams.all_over()
    served = [stream for stream in asked if stream.status == 200]
    refused = [stream for stream in asked if stream.status != 200]
    assert len(served) >= MAX_RUNNING + MAX_QUEUED
    assert len(refused) >= NUM_ASKED / 2
    for stream in served:
        stream.assert_undisturbed()
    for stream in refused:
        assert (stream.status, stream.error["code"]) in [(503, "queue_full"), (503, "overloaded")]
        assert float(stream.headers["retry-after"]) >= 1
    late = streams.ask(urls[0], question("late"), max_tokens=60)
    await async_wait_until(lambda: late.is_over, "the answer after the flood")
    late.assert_undisturbed()
    assert narrow_cluster.is_idle
    narrow_cluster.assert_no_key_leaks()
