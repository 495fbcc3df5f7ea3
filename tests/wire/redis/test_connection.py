"""A command fails only if Redis does not reply in time, not because of delays in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from llava_wire.errors import QueueUnavailable
from llava_wire.redis.connection import Link

from tests.faults.error_injector import ErrorInjector, Fault, FaultKind, running_injector
from tests.machine_speed import scaled
from tests.wire.redis_server import RedisServer

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.3
DELAY_S = 0.01
NO_REPLY = Fault(FaultKind.DROP)
READ_ONLY = Fault(FaultKind.REFUSE, "READONLY You can't write against a read only replica.")


@pytest.fixture
async def injector(server: RedisServer) -> AsyncIterator[ErrorInjector]:
    async with running_injector(server.socket, server.socket.with_name("i")) as injector:
        yield injector


@pytest.fixture
def url(server: RedisServer, injector: ErrorInjector) -> str:
    return f"unix://{server.socket.with_name('i')}"


async def test_waiting_for_a_free_connection_is_not_a_timeout(injector: ErrorInjector, url: str) -> None:
    injector.plan = lambda _: Fault(FaultKind.DELAY, delay_s=scaled(DELAY_S))
    timeout_s, begin = scaled(TIMEOUT_S), time.monotonic()
    async with aclosing(Link(url, timeout_s=timeout_s, max_connections=4)) as link:
        await asyncio.gather(*(link.command("PING") for _ in range(500)))
        assert time.monotonic() - begin > 2 * timeout_s


async def test_commands_that_wait_for_a_connection_fail_if_redis_does_not_reply(
    injector: ErrorInjector, url: str
) -> None:
    injector.plan = lambda _: NO_REPLY
    async with aclosing(Link(url, timeout_s=TIMEOUT_S, max_connections=4)) as link:
        results = await asyncio.gather(*(link.command("PING") for _ in range(50)), return_exceptions=True)
        assert {type(result) for result in results} == {QueueUnavailable}


@pytest.mark.parametrize("num_steps", range(8))
async def test_a_blocked_event_loop_is_not_a_timeout(server: RedisServer, num_steps: int) -> None:
    """Block the event loop while the connection is being opened, or while the command is in progress."""
    url = f"{server.url}?client_name=blocked&db=1"
    async with aclosing(Link(url, timeout_s=scaled(TIMEOUT_S))) as link:
        command = asyncio.create_task(link.command("PING"))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        time.sleep(1.2 * scaled(TIMEOUT_S))
        assert await command


async def test_connections_that_are_closed_after_an_error_disturb_no_other_command(
    injector: ErrorInjector, url: str
) -> None:
    """Every second command fails and closes the idle connections, which other commands would use next."""
    async with aclosing(Link(url, timeout_s=30, max_connections=8)) as link:

        async def ping() -> None:
            for _ in range(50):
                with contextlib.suppress(QueueUnavailable):
                    await link.command("PING")

        requests = iter(range(10**6))
        injector.plan = lambda _: READ_ONLY if next(requests) % 2 else None
        await asyncio.gather(*(ping() for _ in range(16)))
        assert set(link.num_errors) == {"READONLY"}


async def test_a_caller_that_is_cancelled_after_an_error_leaves_no_connection_open(
    server: RedisServer, injector: ErrorInjector, url: str
) -> None:
    """Cancel a failed command at each of its steps while the pool has idle connections."""
    num_idle = 8
    gc.collect()
    gc.freeze()  # the collections below traverse only what this test creates
    for num_steps in range(30):
        async with aclosing(Link(url, timeout_s=scaled(TIMEOUT_S))) as link:
            await asyncio.gather(*(link.command("PING") for _ in range(num_idle)))
            injector.plan = lambda _: READ_ONLY
            command = asyncio.create_task(link.command("SET", "k", "v"))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            command.cancel()
            with contextlib.suppress(asyncio.CancelledError, QueueUnavailable):
                await command
            injector.plan = lambda _: None
        del link
        gc.collect()  # an unclosed connection emits a ResourceWarning, which is an error
