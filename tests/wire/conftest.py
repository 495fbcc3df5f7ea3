from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.wire.harness import Harness
from tests.wire.redis_server import KINDS, RedisServer, binary


@contextlib.contextmanager
def running(kind: str) -> Iterator[RedisServer]:
    program = binary(kind)
    if not program:
        pytest.skip(f"{kind} is not installed")
    folder = Path(tempfile.mkdtemp(prefix="lv"))  # tmp_path is too long for a Unix socket
    server = RedisServer(program, folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=KINDS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param) as server:
        yield server


@pytest.fixture(params=KINDS)
def killable_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A private server that the test may kill and restart."""
    with running(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """The shared server, after all its data has been deleted."""
    shared_server.client.flushall()
    return shared_server


@pytest.fixture
async def harness(server: RedisServer) -> AsyncIterator[Harness]:
    harness = Harness(server)
    yield harness
    await harness.close()
    await harness.check_nothing_leaks()
