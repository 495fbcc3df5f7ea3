"""Error replies of real servers: streams continue, new requests receive 503, and no process exits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.error_injector import ErrorInjector, Fault, FaultKind, running_injector
from tests.faults.queue_errors import QUEUE_ERRORS
from tests.faults.streams import Stream, Streams, story
from tests.waiting import async_wait_until, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

ACL = (Path(__file__).parents[2] / "deploy" / "users.acl").read_text("utf-8")
NUM_STREAMS = 12
FAULT_S = 3.0
INJECTED = {
    "NOAUTH": Fault(FaultKind.REFUSE, "NOAUTH Authentication required."),
    "an unknown word": Fault(FaultKind.REFUSE, "NEWWORD of a later release"),
    "a full disk": Fault(FaultKind.REFUSE, "MISCONF Errors writing to the AOF file: No space left on device"),
    "another protocol": Fault(FaultKind.GARBAGE),
}


@pytest.fixture(scope="module")
def restricted_cluster() -> Iterator[Cluster]:
    """A cluster with one Redis user per role, whose leases are shorter than the faults."""
    with running_cluster(num_workers=2, acl=ACL) as cluster:
        yield cluster


async def start_streams(cluster: Cluster, streams: Streams) -> list[Stream]:
    cluster.restore()
    started = streams.start_many(cluster.urls, NUM_STREAMS, max_tokens=200)
    await async_wait_until(lambda: all(stream.num_deltas >= 5 for stream in started), "text in all streams")
    return started


async def check_rejections(cluster: Cluster, streams: Streams) -> None:
    """Send requests for ``FAULT_S`` seconds. Check that each of them is rejected with 503."""
    end, number = time.monotonic() + FAULT_S, 0
    while time.monotonic() < end or number < len(cluster.urls):
        rejected = streams.start(cluster.urls[number % len(cluster.urls)], story("n"))
        await async_wait_until(lambda: rejected.is_finished, "the rejection")  # noqa: B023
        streams.all.remove(rejected)
        assert rejected.status == 503, rejected.error
        assert rejected.error["code"] in ("queue_unavailable", "no_worker")
        assert float(rejected.headers["retry-after"]) >= 1
        number += 1


async def check_recovery(cluster: Cluster, streams: Streams, started: list[Stream], pids: list[int]) -> None:
    """Check that all streams end with the right text, and that the same processes are still running."""
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    processes = (*cluster.workers, *cluster.controllers)
    assert [process.status for process in processes] == [None] * len(processes)
    assert [process.pid for process in processes] == pids
    assert all(worker.log.count("worker ready") == 1 for worker in cluster.workers)  # the model stayed loaded
    # In a thread, because the readiness check waits for Redis, and the injector runs in this event loop.
    await asyncio.to_thread(
        wait_until, lambda: all(each.is_ready for each in cluster.controllers), "the workers' heartbeats"
    )
    late = streams.start_many(cluster.urls, len(cluster.urls), max_tokens=5)
    await streams.wait_for_all()
    for stream in late:
        stream.assert_complete()
    cluster.assert_no_key_leaks()


def pids_of(cluster: Cluster) -> list[int]:
    return [process.pid for process in (*cluster.workers, *cluster.controllers)]


@pytest.mark.parametrize("kind", QUEUE_ERRORS)
async def test_an_error_reply_of_the_queue_interrupts_no_stream(
    restricted_cluster: Cluster, streams: Streams, kind: str
) -> None:
    started = await start_streams(restricted_cluster, streams)
    pids = pids_of(restricted_cluster)
    with QUEUE_ERRORS[kind](restricted_cluster.queue):
        await check_rejections(restricted_cluster, streams)
    await check_recovery(restricted_cluster, streams, started, pids)
    assert restricted_cluster.redis.info("errorstats")[f"errorstat_{kind}"]


@asynccontextmanager
async def injected(cluster: Cluster) -> AsyncIterator[ErrorInjector]:
    """Lead the connections of all processes through an error injector."""
    target = cluster.queue.socket
    async with running_injector(target, target.with_name("injector")) as injector:
        for path in (cluster.front, cluster.back):
            path.redirect(target.with_name("injector"))
        try:
            yield injector
        finally:
            for path in (cluster.front, cluster.back):
                path.redirect(target)


@pytest.mark.parametrize("kind", INJECTED)
async def test_a_reply_that_the_queue_never_sent_before_interrupts_no_stream(
    restricted_cluster: Cluster, streams: Streams, kind: str
) -> None:
    started = await start_streams(restricted_cluster, streams)
    pids = pids_of(restricted_cluster)
    async with injected(restricted_cluster) as injector:
        injector.plan = lambda _: INJECTED[kind]
        await check_rejections(restricted_cluster, streams)
        injector.plan = lambda _: None
        await check_recovery(restricted_cluster, streams, started, pids)
