"""A real queue for a test: Valkey or Redis in a folder of its own, without port or disk."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_cli.up.redis_process import find_redis_binary

from tests.waiting import wait_until


@contextmanager
def running_queue() -> Iterator[str]:
    """Its URL."""
    with tempfile.TemporaryDirectory(prefix="lvq-", dir="/tmp") as folder:  # a socket's path must be short
        path = Path(folder) / "q.sock"
        options = [
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        server = subprocess.Popen([find_redis_binary(), *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for(path, server)
            yield f"unix://{path}"
        finally:
            server.kill()
            server.wait()


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: server.poll() is not None or _listens(path), "the queue's server")
    assert server.poll() is None, "the queue's server ended at once"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as attempt:
        return attempt.connect_ex(str(path)) == 0
