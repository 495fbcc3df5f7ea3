"""Fixtures for the client tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llava_client import AsyncClient, Client, RetryPolicy

from tests.client.blocking_clients import AnyClient, BlockingAsyncClient, SyncClient
from tests.client.scripted_server import ScriptedServer, serving
from tests.server.conftest import own_stack, queue_url, shared_stack, stack, valkey_socket

__all__ = ["own_stack", "queue_url", "shared_stack", "stack", "valkey_socket"]

MakeClient = Callable[..., AnyClient]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest, server: ScriptedServer) -> Iterator[MakeClient]:
    """Return a function that creates clients of either kind.

    By default, the clients retry without a delay.
    """
    clients: list[AnyClient] = []

    def make(base_url: str | None = None, **options: Any) -> AnyClient:
        settings = {"retry_policy": RetryPolicy(initial_delay_s=0.0), **options}
        url = base_url or server.url
        is_sync = request.param == "sync"
        client = (
            SyncClient(Client(url, **settings))
            if is_sync
            else BlockingAsyncClient(AsyncClient(url, **settings))
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client: MakeClient) -> AnyClient:
    """A client of either kind with default settings."""
    return make_client()


@pytest.fixture(autouse=True, scope="module")
def clean_environment() -> Iterator[None]:
    """Unset environment variables that the user who runs the tests may have set."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in (
            "LLAVA_BASE_URL",
            "LLAVA_API_KEY",
            "LLAVA_AUTH",
            "LLAVA_API_KEYS",
            "LLAVA_API_KEYS_FILE",
            "LLAVA_REDIS_URL",
        ):
            monkeypatch.delenv(name, raising=False)
        yield
