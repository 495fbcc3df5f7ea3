from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.wire.harness import Harness
from tests.wire.redis_server import KINDS, RedisServer, binary


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", params=KINDS)
def running_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    program = binary(request.param)
    if not program:
        pytest.skip(f"{request.param}: no such server on this machine")
    folder = Path(tempfile.mkdtemp(prefix="lv"))  # tmp_path is too long for a socket
    server = RedisServer(program, folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    """An empty one."""
    running_server.client.flushall()
    return running_server


@pytest.fixture
async def harness(server: RedisServer) -> AsyncIterator[Harness]:
    harness = Harness(server)
    yield harness
    await harness.close()
    await harness.check_nothing_leaks()
