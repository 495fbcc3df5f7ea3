"""Manual failover while streams are live: a replica of the queue is promoted, and proxies switch to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Streams
from tests.processes import free_port
from tests.waiting import async_wait_until, wait_until
from tests.wire.redis_server import RedisServer, binary

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

LOOPBACK = "127.0.0.1"


def is_connected(replica: RedisServer) -> bool:
    """Return whether the replica is connected and in sync with its primary."""
    return bool(replica.client.info("replication")["master_link_status"] == "up")


@contextmanager
def replicas_of(queue: RedisServer, number: int) -> Iterator[list[RedisServer]]:
    program = binary("valkey")
    assert program
    servers = [
        RedisServer(program, Path(tempfile.mkdtemp(prefix="lv")), port=free_port()) for _ in range(number)
    ]
    try:
        for server in servers:
            server.start()
            server.client.replicaof(LOOPBACK, queue.port)
        wait_until(lambda: all(is_connected(server) for server in servers), "replicas")
        yield servers
    finally:
        for server in servers:
            server.kill()
            shutil.rmtree(server.socket.parent)


@pytest.fixture
def replicated_cluster() -> Iterator[Cluster]:
    with running_cluster(num_workers=2, is_durable=False, queue_port=free_port()) as cluster:
        yield cluster


async def test_live_streams_continue_on_a_promoted_replica(
    replicated_cluster: Cluster, streams: Streams
) -> None:
    cluster = replicated_cluster
    with replicas_of(cluster.queue, 2) as (promoted, other):
        started = streams.start_many(cluster.urls, 12, max_tokens=300)
        await async_wait_until(lambda: all(stream.num_deltas >= 20 for stream in started), "the streams")
        cluster.queue.kill()
        promoted.client.replicaof("NO", "ONE")
        other.client.replicaof(LOOPBACK, promoted.port)
        cluster.front.redirect(promoted.socket)
        cluster.back.redirect(promoted.socket)
        before = {stream: stream.num_deltas for stream in started}
        await async_wait_until(
            lambda: all(s.is_finished or s.num_deltas > number + 20 for s, number in before.items()),
            "more tokens in each stream",
        )
        late = streams.start_many(cluster.urls, 2, max_tokens=20)
        await streams.wait_for_all()
        for stream in (*started, *late):
            stream.assert_complete()
        wait_until(lambda: is_connected(other), "the other replica")
        leaks = [key for key in promoted.client.scan_iter("{lv}:log:*") if promoted.client.ttl(key) == -1]
        assert not leaks
        cluster.queue.start()  # the fixture's teardown needs a running queue
