"""Reuse fixtures from the server tests in the security tests."""

from __future__ import annotations

import pytest

from tests.server.conftest import (
    own_stack,
    queue_url,
    serve,
    shared_stack,
    stack,
    valkey_socket,
    worker,
)

__all__ = ["own_stack", "queue_url", "serve", "shared_stack", "stack", "valkey_socket", "worker"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
