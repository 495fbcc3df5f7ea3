"""The socket through which the server of ``llava-serve up --demo`` requests that a worker be killed.

A request is a line with the process ID of a worker, and the response is a line: ``killed`` or ``not found``.
Only children of ``up`` can be killed, and only the current user can connect to the socket.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

__all__ = ["demo_socket_path", "serve_demo_socket"]

_PREFIX = "llava-serve-demo-"
_REQUEST_BYTES = 64


@contextmanager
def demo_socket_path() -> Iterator[Path]:
    """Yield the path of a socket in a folder that only the current user can access. Remove it on exit."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        yield Path(folder) / "demo.sock"


@asynccontextmanager
async def serve_demo_socket(path: Path | None, kill_worker: Callable[[int], bool]) -> AsyncIterator[None]:
    """Serve requests until the context exits. Do nothing if ``path`` is None.

    ``kill_worker(pid)`` returns whether a worker with this process ID was killed.
    """
    if path is None:
        yield
        return

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).strip()
        is_killed = line.isdigit() and kill_worker(int(line))
        writer.write(b"killed\n" if is_killed else b"not found\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(handle, path, limit=_REQUEST_BYTES)
    try:
        yield
    finally:
        server.close()
