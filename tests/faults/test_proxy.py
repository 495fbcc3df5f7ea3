"""The broken network of these tests leaves nothing open: what leaks here fails some later test."""

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


async def _knock(port: int) -> None:
    """Connects and goes again, until nobody listens."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return
        try:
            writer.write(b"hello")
            await reader.read(10)
        except OSError:
            pass  # cut
        finally:
            writer.transport.abort()


async def test_a_path_that_closes_while_clients_come_and_go_leaves_nothing_open(tmp_path: Path) -> None:
    target = tmp_path / "s"
    async with await asyncio.start_unix_server(_echo, target):
        for _ in range(20):
            path = FaultProxy(target)
            clients = [asyncio.ensure_future(_knock(path.port)) for _ in range(8)]
            await asyncio.sleep(0.005)
            await asyncio.to_thread(path.close)
            await asyncio.gather(*clients)
    del path
    gc.collect()  # here, where a warning names this test
