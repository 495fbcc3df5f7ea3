"""The loss of any single key in Redis, for example by eviction, leaves no job behind.

Three workers and two controllers run in this process. While they stream, one key is deleted. All texts must
be the same as without the loss. ``--exhaustive`` deletes a key of each kind 30 times instead of once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from llava_wire.redis.keys import PREFIX

from tests.faults.local_streams import NUM_STREAMS, NUM_TOKENS, running_streams
from tests.wire.conftest import running
from tests.wire.redis_server import SLOW_KINDS, RedisServer

pytestmark = pytest.mark.anyio

KINDS = (
    "wait", "wait-high", "wait-low", "since", "backlog", "clock", "fair", "served", "wake", "job", "log",
    "tenant", "load", "live", "inflight", "heartbeat", "out", "beats", "blob", "users", "reaped", "workers",
    "progress", "controllers", "pixels", "pixel_bytes", "jobs", "job_bytes", "out_bytes",
)  # fmt: skip


@pytest.fixture(params=SLOW_KINDS)
def private_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param) as server:
        yield server


def delete_one_key(server: RedisServer, kind: str, rng: random.Random) -> bool:
    """Delete a random key of this kind. Return False if there is none at the moment."""
    name = f"{PREFIX}{kind}"
    keys = sorted(
        key
        for key in server.client.scan_iter(f"{name}*")
        if key.decode().partition(":")[2].split(":")[0] == kind
    )
    return bool(keys) and bool(server.client.delete(rng.choice(keys)))


@pytest.mark.timeout(2400)
async def test_streams_survive_the_loss_of_any_key(
    private_server: RedisServer, pytestconfig: pytest.Config
) -> None:
    num_repeats = 30 if pytestconfig.getoption("exhaustive") else 1
    server = private_server
    async with running_streams(server.url) as streams:
        await streams.submit(-1)
        expected = await streams.texts()
        assert len(set(expected)) == NUM_STREAMS
        for kind in KINDS:
            for repeat in range(num_repeats):
                rng = random.Random(f"{kind} {repeat}")
                await streams.submit(hash((kind, repeat)))
                await streams.has_begun(rng.randrange(NUM_STREAMS * NUM_TOKENS // 2))
                delete_one_key(server, kind, rng)
                assert await streams.texts() == expected, (kind, repeat)


FIELDS = ("state", "controller", "tenant", "model", "payload", "digests", "print", "ends", "score", "crashes",
    "doubts", "owner", "cost", "priority", "nonce", "outline", "assignment", "worker", "length", "queued_at",
)  # fmt: skip


async def test_streams_survive_the_loss_of_any_field_of_a_job(private_server: RedisServer) -> None:
    redis = private_server.client
    async with running_streams(private_server.url) as streams:
        await streams.submit(-1)
        expected = await streams.texts()
        for number, field in enumerate(FIELDS):
            await streams.submit(number)
            await streams.has_begun(4 * NUM_STREAMS)
            for key in sorted(redis.scan_iter(f"{PREFIX}job:job-{number}-*"))[:3]:
                redis.hdel(key, field)
            assert await streams.texts() == expected, field
