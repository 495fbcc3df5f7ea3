"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llava_client import AsyncClient, Client, RetryPolicy

from tests.client.client_driver import AsyncDriver, Driver, SyncDriver
from tests.client.scripted_peer import Peer, serving
from tests.server.conftest import shared_stack, stack, valkey_socket

__all__ = ["shared_stack", "stack", "valkey_socket"]

Connect = Callable[..., Driver]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as peer:
        yield peer


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, peer: Peer) -> Iterator[Connect]:
    """Make a client of either kind for the peer; it does not wait between tries unless told how long."""
    drivers: list[Driver] = []

    def make(base_url: str | None = None, **options: Any) -> Driver:
        settings = {"retry_policy": RetryPolicy(initial_delay_s=0.0), **options}
        url = base_url or peer.url
        is_sync = request.param == "sync"
        driver = SyncDriver(Client(url, **settings)) if is_sync else AsyncDriver(AsyncClient(url, **settings))
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        driver.close()


@pytest.fixture
def driver(connect: Connect) -> Driver:
    """A client of either kind with everything else at its default."""
    return connect()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the developer's own settings."""
    for name in (
        "LLAVA_BASE_URL",
        "LLAVA_API_KEY",
        "LLAVA_AUTH",
        "LLAVA_API_KEYS",
        "LLAVA_API_KEYS_FILE",
        "LLAVA_REDIS_URL",
    ):
        monkeypatch.delenv(name, raising=False)
