"""The fault proxy must not leak connections, because a leak would make a later test fail."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy

pytestmark = pytest.mark.anyio


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(10))
    writer.close()


async def _connect_repeatedly(port: int) -> None:
    """Connect and disconnect in a loop until the port is closed."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        try:
            writer.write(b"hello")
            await reader.read(10)
        except OSError:
            pass  # disconnected
        finally:
            writer.transport.abort()


async def test_a_proxy_that_closes_while_clients_connect_leaves_nothing_open(tmp_path: Path) -> None:
    target = tmp_path / "s"
    async with await asyncio.start_unix_server(_echo, target):
        for _ in range(20):
            proxy = FaultProxy(target)
            clients = [asyncio.ensure_future(_connect_repeatedly(proxy.port)) for _ in range(8)]
            await asyncio.sleep(0.005)
            await asyncio.to_thread(proxy.close)
            await asyncio.gather(*clients)
    del proxy
    gc.collect()  # so that warnings are attributed to this test
