"""Programs that a benchmark starts: free ports, servers that serve a model, and files that they store."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request
from pathlib import Path

__all__ = ["free_port", "wait_until_served", "wait_until_stored"]

_START_TIMEOUT_S = 60.0
_STORE_TIMEOUT_S = 600.0


def free_port() -> int:
    """Return a port of this machine that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_served(model: str, port: int) -> None:
    """Wait until the server on a port lists the model. Raises SystemExit after a minute."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        url = f"http://127.0.0.1:{port}/v1/models"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as response:
            if model.encode() in response.read():
                return
        time.sleep(0.2)
    raise SystemExit(f"The server on port {port} was not ready within {_START_TIMEOUT_S:g} seconds.")


def wait_until_stored(folder: Path, pattern: str) -> None:
    """Wait until a file in the folder matches the pattern. Raises TimeoutError after ten minutes."""
    deadline = time.monotonic() + _STORE_TIMEOUT_S
    while not any(folder.glob(pattern)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no program stored {pattern} in {folder} within {_STORE_TIMEOUT_S:g} s")
        time.sleep(0.1)
