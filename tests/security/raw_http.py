"""Send raw HTTP requests that client libraries would refuse to send."""

from __future__ import annotations

import socket

from tests.machine_speed import scaled
from tests.server.conftest import Stack


def connect(stack: Stack) -> socket.socket:
    """Open a connection to the server."""
    url = stack.http.base_url
    assert url.host and url.port
    return socket.create_connection((url.host, url.port), timeout=scaled(30))


def status_line(stack: Stack, request: bytes) -> bytes:
    """Return the status line of the response, or b"closed" if the connection is closed without one."""
    with connect(stack) as connection:
        try:
            connection.sendall(request)
            return connection.recv(65536).partition(b"\r\n")[0]
        except OSError:
            return b"closed"
