"""Streams survive queue faults: kills with and without data loss, disconnects, stalls and delays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.streams import Stream, Streams, story
from tests.machine_speed import scaled
from tests.waiting import async_wait_until
from tests.wire.redis_server import RedisServer, binary

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NUM_STREAMS = 32
ACL = (Path(__file__).parents[2] / "deploy" / "users.acl").read_text("utf-8")


@pytest.fixture(scope="module")
def restricted_queue() -> Iterator[RedisServer]:
    program = binary("valkey")
    assert program
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    server = RedisServer(program, folder)
    server.start()
    server.restrict(ACL)
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def volatile_cluster() -> Iterator[Cluster]:
    """A cluster with fewer slots than streams, and with a queue that loses its data when it restarts."""
    with running_cluster(
        num_workers=2, is_durable=False, worker={"max_num_sequences": 8}, server={"keepalive_s": 0.5}
    ) as cluster:
        yield cluster


async def wait_for_text(streams: list[Stream], number: int) -> None:
    await async_wait_until(lambda: sum(stream.num_deltas >= 10 for stream in streams) >= number, "text")


async def test_a_killed_durable_queue_loses_nothing(cluster: Cluster, streams: Streams) -> None:
    started = streams.start_many(cluster.urls, NUM_STREAMS)
    await wait_for_text(started, 16)
    cluster.queue.kill()
    cluster.queue.start()
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()


async def test_a_queue_restarted_without_data_loses_no_live_stream(
    volatile_cluster: Cluster, streams: Streams
) -> None:
    volatile_cluster.restore()
    started = streams.start_many(volatile_cluster.urls, NUM_STREAMS)
    await wait_for_text(started, 12)
    assert sum(stream.num_deltas == 0 for stream in started) > 4  # queued jobs, which must be resubmitted too
    volatile_cluster.queue.restart(None)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    volatile_cluster.assert_no_key_leaks()
    assert not volatile_cluster.key_names("tenant:")


async def test_a_queue_restarted_with_older_data_loses_no_live_stream(
    volatile_cluster: Cluster, streams: Streams
) -> None:
    volatile_cluster.restore()
    started = streams.start_many(volatile_cluster.urls, 16, max_tokens=200)
    await wait_for_text(started, 8)
    dump = volatile_cluster.queue.snapshot()
    num_deltas = sum(stream.num_deltas for stream in started)
    await async_wait_until(
        lambda: sum(stream.num_deltas for stream in started) > num_deltas + 100, "more text"
    )
    volatile_cluster.queue.restart(dump)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    volatile_cluster.assert_no_key_leaks()


async def test_a_disconnected_queue_interrupts_no_stream(volatile_cluster: Cluster, streams: Streams) -> None:
    cluster = volatile_cluster
    cluster.restore()
    started = streams.start_many(cluster.urls, 8, max_tokens=200)
    await wait_for_text(started, 8)
    cluster.front.disconnect()
    cluster.back.disconnect()
    await async_wait_until(
        lambda: all(stream.num_comments for stream in started), "a keepalive comment on each stream"
    )
    cluster.front.heal()
    cluster.back.heal()
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()


async def test_a_queue_that_does_not_respond_ends_no_stream_and_rejects_new_requests(
    volatile_cluster: Cluster, streams: Streams
) -> None:
    cluster = volatile_cluster
    cluster.restore()
    started = streams.start_many(cluster.urls, 8, max_tokens=200)
    await wait_for_text(started, 8)
    cluster.front.stall()
    cluster.back.stall()
    await async_wait_until(
        lambda: all(stream.num_comments for stream in started), "a keepalive comment on each stream"
    )
    rejected = streams.start(cluster.controllers[0].url, story("n"))
    await async_wait_until(lambda: rejected.is_finished, "the rejection while the queue is stalled")
    assert rejected.status == 503
    assert rejected.error["code"] == "queue_unavailable"
    assert float(rejected.headers["retry-after"]) >= 1
    assert all(process.status is None for process in (*cluster.workers, *cluster.controllers))
    cluster.front.heal()
    cluster.back.heal()
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()


async def test_a_slow_path_to_the_queue_does_not_slow_down_streams(
    volatile_cluster: Cluster, streams: Streams
) -> None:
    """Tokens generated during a slow emit are sent together in the next emit."""
    cluster = volatile_cluster
    cluster.restore()
    cluster.back.delay(scaled(0.2))
    cluster.front.delay(scaled(0.2))
    started = streams.start_many(cluster.urls, 4, max_tokens=300)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
        assert stream.num_deltas < stream.max_tokens / 3


async def test_a_queue_out_of_memory_rejects_new_requests_and_interrupts_no_stream(
    cluster: Cluster, streams: Streams
) -> None:
    started = streams.start_many(cluster.urls, 8, max_tokens=300)
    await wait_for_text(started, 8)
    cluster.redis.config_set("maxmemory", 1)
    try:
        rejected = streams.start(cluster.controllers[0].url, story("n"))
        await async_wait_until(lambda: rejected.is_finished, "the rejection")
    finally:
        cluster.redis.config_set("maxmemory", 0)
    assert (rejected.status, rejected.error["code"]) == (503, "queue_unavailable")
    streams.all.remove(rejected)
    await streams.wait_for_all()
    for stream in started:
        stream.assert_complete()
    assert all(process.status is None for process in (*cluster.workers, *cluster.controllers))


async def test_each_role_needs_only_its_own_permissions(streams: Streams) -> None:
    with running_cluster(num_controllers=2, num_workers=2, acl=ACL) as restricted:
        started = streams.start_many(restricted.urls, 8, max_tokens=300)
        await wait_for_text(started, 8)
        restricted.worker_of(started[0].job_id).kill()
        await streams.wait_for_all()
        for stream in started:
            stream.assert_complete()
        stream = streams.start(restricted.controllers[0].url, story("resumed"), max_tokens=4000)
        await async_wait_until(lambda: stream.num_deltas > 3, "the stream")
        restricted.controllers[0].kill()
        rest = streams.resume(restricted.controllers[1].url, stream)
        await async_wait_until(lambda: rest.num_deltas > 3, "the rest")
        denied = [entry for entry in restricted.redis.acl_log() if entry["username"] in ("server", "worker")]
        assert not denied


@pytest.mark.parametrize("role", ["server", "worker"])
def test_no_role_can_access_anything_else(restricted_queue: RedisServer, role: str) -> None:
    socket = str(restricted_queue.socket)
    with redis.Redis(unix_socket_path=socket, username=role, password=f"change-{role}-password") as client:
        for attempt in (
            client.flushall,
            client.config_get,
            client.keys,
            lambda: client.get("other"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                attempt()
