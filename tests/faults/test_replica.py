"""Failover by hand: a replica of the queue is promoted under live streams, and the address leads there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.processes import free_port
from tests.faults.streams import Stream, Streams, question
from tests.waiting import async_wait_until, wait_until
from tests.wire.redis_server import RedisServer, binary

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

LOOPBACK = "127.0.0.1"


@contextmanager
def replicas_of(queue: RedisServer, number: int) -> Iterator[list[RedisServer]]:
    """In step with it."""
    program = binary("valkey")
    assert program
    servers = [
        RedisServer(program, Path(tempfile.mkdtemp(prefix="lv")), port=free_port()) for _ in range(number)
    ]
    try:
        for server in servers:
            server.start()
            server.client.replicaof(LOOPBACK, queue.port)
        for server in servers:
            wait_until(lambda: server.client.info("replication")["master_link_status"] == "up", "a replica")  # noqa: B023
        yield servers
    finally:
        for server in servers:
            server.kill()
            shutil.rmtree(server.socket.parent)


@pytest.fixture
def pair() -> Iterator[Cluster]:
    with running_cluster(num_workers=2, is_durable=False, queue_port=free_port()) as cluster:
        yield cluster


async def streams_of(cluster: Cluster, streams: Streams, number: int, max_tokens: int) -> list[Stream]:
    urls = [controller.url for controller in cluster.controllers]
    return [
        streams.ask(urls[index % len(urls)], question(index), max_tokens=max_tokens)
        for index in range(number)
    ]


async def test_live_streams_go_on_at_a_promoted_replica(pair: Cluster, streams: Streams) -> None:
    with replicas_of(pair.queue, 2) as (heir, other):
        begun = await streams_of(pair, streams, 12, 300)
        await async_wait_until(lambda: all(stream.num_deltas >= 20 for stream in begun), "the streams")
        pair.queue.kill()
        heir.client.replicaof("NO", "ONE")
        other.client.replicaof(LOOPBACK, heir.port)
        pair.front.lead_to(heir.socket)
        pair.back.lead_to(heir.socket)
        marks = [stream.num_deltas for stream in begun]
        await async_wait_until(
            lambda: all(s.is_over or s.num_deltas > mark + 20 for s, mark in zip(begun, marks, strict=True)),
            "more of each stream",
        )
        late = await streams_of(pair, streams, 2, 20)
        await streams.all_over()
        for stream in (*begun, *late):
            stream.assert_undisturbed()
        wait_until(
            lambda: other.client.info("replication")["master_link_status"] == "up", "the other replica"
        )
        leaks = [key for key in heir.client.scan_iter("{lv}:log:*") if heir.client.ttl(key) == -1]
        assert not leaks
        pair.queue.start()  # for the end of the fixture
