"""Reuse fixtures from the server tests in the security tests."""

from __future__ import annotations

from tests.server.conftest import (
    api_key_cli,
    own_stack,
    queue_url,
    serve,
    shared_stack,
    stack,
    valkey_socket,
    worker,
)

__all__ = [
    "api_key_cli",
    "own_stack",
    "queue_url",
    "serve",
    "shared_stack",
    "stack",
    "valkey_socket",
    "worker",
]
