"""A queue with shards on two Redis servers: the loss of one server affects only the jobs of its shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from llava_wire.redis.shards import shard_index

from tests.faults.streams import Stream, open_streams
from tests.machine_speed import scaled
from tests.processes import ControllerProcess, running_controller, worker_factory
from tests.waiting import async_wait_until
from tests.wire.conftest import running
from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio

NUM_SHARDS = 2


class ShardedSystem:
    """A controller, two workers, and the Redis servers of the two shards."""

    def __init__(self, controller: ControllerProcess, servers: list[RedisServer]) -> None:
        self.controller = controller
        self.servers = servers

    def streams_on(self, shard: int, streams: list[Stream]) -> list[Stream]:
        return [stream for stream in streams if shard_index(stream.job_id, NUM_SHARDS) == shard]

    def restart(self, shard: int) -> None:
        """Restart a server, which loses all its data."""
        self.servers[shard].start()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardedSystem]:
    folder = tmp_path_factory.mktemp("shards")
    with ExitStack() as stack:
        servers = [stack.enter_context(running("valkey")) for _ in range(NUM_SHARDS)]
        urls = " ".join(server.url for server in servers)
        settings = {"queue_urls": urls, "lease_s": scaled(1.0)}
        start_worker = stack.enter_context(worker_factory(servers[0].url, folder))
        for _ in range(2):
            start_worker(echo_step_s=0.02, **settings)
        controller = stack.enter_context(running_controller(servers[0].url, folder, **settings))
        yield ShardedSystem(controller, servers)


async def test_the_loss_of_one_server_affects_only_the_streams_of_its_shard(system: ShardedSystem) -> None:
    async with open_streams() as streams:
        url = system.controller.url
        first = streams.start_many([url], 12, max_tokens=150)
        await async_wait_until(lambda: all(stream.num_deltas > 2 for stream in first))
        lost, others = system.streams_on(1, first), system.streams_on(0, first)
        assert lost
        assert others
        system.servers[1].kill()
        await async_wait_until(lambda: all(stream.is_finished for stream in others))
        await async_wait_until(lambda: system.controller.metric("llava_num_unavailable_queue_shards") == 1)
        assert not any(stream.is_finished for stream in lost)
        during = streams.start_many([url], 12, max_tokens=20)
        await async_wait_until(lambda: all(stream.is_finished for stream in during))
        assert system.streams_on(0, during) == during
        ready = httpx2.get(f"{url}/readyz")
        assert ready.status_code == 200
        [warning] = [each for each in ready.json()["warnings"] if each.startswith("Shard ")]
        assert warning.startswith("Shard 1: The job queue ")
        assert system.controller.metric("llava_num_workers") == 2
        system.restart(1)
        await streams.wait_for_all()
        for stream in streams.all:
            stream.assert_complete()
        await async_wait_until(lambda: system.controller.metric("llava_num_unavailable_queue_shards") == 0)
        after = streams.start_many([url], 12, max_tokens=20)
        await streams.wait_for_all()
        for stream in after:
            stream.assert_complete()
        assert system.streams_on(1, after)


async def test_the_system_is_not_ready_if_all_servers_are_lost(system: ShardedSystem) -> None:
    for server in system.servers:
        server.kill()
    await async_wait_until(lambda: not system.controller.is_ready)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    response = httpx2.post(f"{system.controller.url}/v1/chat/completions", json=body, timeout=scaled(30))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
    for server in system.servers:
        server.start()
    await async_wait_until(lambda: system.controller.is_ready)
