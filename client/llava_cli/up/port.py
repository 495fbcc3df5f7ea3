"""Checks whether the listen address is free and, if not, finds the process that is using it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PortUnavailable", "check_port", "owner_of"]

_LISTEN = "0A"  # the TCP_LISTEN state in /proc/net/tcp


class PortUnavailable(Exception):
    """The server cannot listen on the address. The message explains why and how to fix this."""


def check_port(host: str, port: int) -> int:
    """Return ``port``, or a free port if ``port`` is 0.

    Raises PortUnavailable if the server cannot listen on the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free_port: int = probe.getsockname()[1]
            return free_port
    except (OSError, OverflowError) as exc:
        raise PortUnavailable(_explain(host, port, exc)) from exc


def owner_of(port: int) -> str | None:
    """Return the process that is listening on ``port``, such as "python3 -m http.server (pid 42)".

    Return None if the process cannot be determined.
    """
    inodes = set(_listening_inodes(port))
    for entry in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        try:
            target = os.readlink(entry)
        except OSError:  # another user's process, or one that has just exited
            continue
        if target.removeprefix("socket:[").removesuffix("]") in inodes:
            return _process(entry.parents[1])
    return None


def _explain(host: str, port: int, exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
        owner = owner_of(port) or "another program"
        return (
            f"Port {port} on {host} is in use by {owner}. Stop that process, or choose another port with "
            "--port (0 selects a free port)."
        )
    reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return f"Cannot listen on {host}, port {port}: {reason}."


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:  # not Linux, or no IPv6
            continue
        for row in rows:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield inode


def _process(folder: Path) -> str | None:
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return f"{' '.join(words).strip()[:60]} (pid {folder.name})"
