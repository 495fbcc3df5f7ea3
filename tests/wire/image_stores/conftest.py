from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.conftest import running
from tests.wire.redis_server import RedisServer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[RedisServer]:
    """The server of the queue. Only Valkey, because other tests run the same scripts on Redis too."""
    with running("valkey") as server:
        yield server
