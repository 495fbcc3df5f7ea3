"""Send raw HTTP requests that client libraries would refuse to send."""

from __future__ import annotations

import select
import socket

from tests.machine_speed import scaled
from tests.server.conftest import Stack


def connect(stack: Stack) -> socket.socket:
    """Open a connection to the server."""
    url = stack.http.base_url
    assert url.host and url.port
    return socket.create_connection((url.host, url.port), timeout=scaled(30))


def slow_reader(url: str, request: bytes, *, buffer_bytes: int = 4096) -> socket.socket:
    """Send requests over a connection that receives about this many bytes until its data is read."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = socket.socket()
    connection.settimeout(scaled(30))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connection.connect((host, int(port)))
    connection.sendall(request)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server has closed or reset the connection. Reads nothing."""
    events = select.poll()
    events.register(connection, select.POLLRDHUP)
    return bool(events.poll(0))


def status_line(stack: Stack, request: bytes) -> bytes:
    """Return the status line of the response, or b"closed" if the connection is closed without one."""
    with connect(stack) as connection:
        try:
            connection.sendall(request)
            return connection.recv(65536).partition(b"\r\n")[0]
        except OSError:
            return b"closed"
