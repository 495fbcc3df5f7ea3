"""Streams are identical after data loss, a long pause and under high latency of the queue.

``--exhaustive`` pauses the queue for 40 seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.local_streams import LEASE_S, NUM_STREAMS, running_streams
from tests.faults.proxy import FaultProxy
from tests.wire.conftest import running
from tests.wire.redis_server import SLOW_KINDS, RedisServer

pytestmark = pytest.mark.anyio

PAUSE_S, EXHAUSTIVE_PAUSE_S = 4 * LEASE_S, 40.0
LATENCY_S = 0.3


@pytest.fixture(params=SLOW_KINDS)
def private_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param) as server:
        yield server


async def test_streams_survive_the_deletion_of_all_data(private_server: RedisServer) -> None:
    async with running_streams(private_server.url) as streams:
        await streams.submit(1)
        expected = await streams.texts()
        for repeat in range(4):
            await streams.submit(2 + repeat)
            await streams.has_begun(repeat * 4 * NUM_STREAMS)
            private_server.client.flushall()
            assert await streams.texts() == expected


@pytest.mark.timeout(240)
async def test_streams_survive_a_pause_of_the_queue(
    private_server: RedisServer, pytestconfig: pytest.Config
) -> None:
    pause_s = EXHAUSTIVE_PAUSE_S if pytestconfig.getoption("exhaustive") else PAUSE_S
    async with running_streams(private_server.url) as streams:
        await streams.submit(1)
        expected = await streams.texts()
        await streams.submit(2)
        await streams.has_begun(4 * NUM_STREAMS)
        private_server.pause()
        try:
            await asyncio.sleep(pause_s)  # the pause itself is what is tested
        finally:
            private_server.resume()
        assert await streams.texts() == expected


async def test_streams_are_exact_if_every_command_takes_300_ms(private_server: RedisServer) -> None:
    proxy = FaultProxy(Path(private_server.socket))
    try:
        async with running_streams(private_server.url) as streams:
            await streams.submit(1)
            expected = await streams.texts()
        async with running_streams(proxy.url) as streams:
            proxy.delay(LATENCY_S)
            await streams.submit(2)
            assert await streams.texts() == expected
            proxy.heal()
    finally:
        proxy.close()
