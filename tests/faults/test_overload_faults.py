"""Overload at ten times the capacity: excess requests are rejected with a retry time."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams, story
from tests.waiting import async_wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

MAX_RUNNING, MAX_QUEUED = 4, 6
NUM_REQUESTS = 100


@pytest.fixture
def small_cluster() -> Iterator[Cluster]:
    """A cluster with low limits. Leases are long, so that a suspended worker is not declared lost."""
    with running_cluster(
        num_workers=1,
        server={"max_queued": MAX_QUEUED, "max_open_requests": 64, "lease_s": 600, "hang_timeout_s": 600},
        worker={"max_num_sequences": MAX_RUNNING, "lease_s": 600, "hang_timeout_s": 600},
    ) as cluster:
        yield cluster


async def test_under_overload_each_request_is_completed_or_rejected_with_a_retry_time(
    small_cluster: Cluster, streams: Streams
) -> None:
    cluster, (worker,) = small_cluster, small_cluster.workers
    # Retry times are estimated from the service rate, which is unknown until the first response ends.
    first = streams.start(cluster.urls[0], story("first"), max_tokens=60)
    await async_wait_until(lambda: first.is_finished, "a response")

    running = streams.start_many(cluster.urls, MAX_RUNNING, max_tokens=400)
    await async_wait_until(lambda: all(stream.num_deltas for stream in running), "running streams")
    worker.send(signal.SIGSTOP)  # no slot becomes free while the requests arrive
    others = streams.start_many(cluster.urls, NUM_REQUESTS - MAX_RUNNING, max_tokens=60)
    num_rejected = len(others) - MAX_QUEUED
    await async_wait_until(
        lambda: sum(stream.is_finished for stream in others) >= num_rejected, "the rejections"
    )
    worker.send(signal.SIGCONT)
    await streams.wait_for_all()

    rejected = [stream for stream in others if stream.status != 200]
    assert len(rejected) == num_rejected
    for stream in rejected:
        assert (stream.status, stream.error["code"]) == (503, "queue_full")
        assert float(stream.headers["retry-after"]) >= 1
    for stream in {*running, *others} - {*rejected}:
        stream.assert_complete()
    late = streams.start(cluster.urls[0], story("late"), max_tokens=60)
    await async_wait_until(lambda: late.is_finished, "a response after the overload")
    late.assert_complete()
    assert cluster.is_idle
    cluster.assert_no_key_leaks()
