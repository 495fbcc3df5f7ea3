"""Listening sockets with readable error messages."""

from __future__ import annotations

import errno
import socket

__all__ = ["BACKLOG", "ListenError", "listen", "reserve_port", "url_of"]

BACKLOG = 4096  # queued new connections, the default maximum of Linux (net.core.somaxconn)


class ListenError(Exception):
    """The address is not available. The message states the reason and how to fix the problem."""


def listen(host: str, port: int, *, flag: str, is_shared: bool = False) -> socket.socket:
    """Listen on the first address of ``host`` that belongs to this machine.

    ``is_shared`` is whether other processes of this user may listen on the same port. Raises ListenError. Its
    message names ``flag`` as the command-line option for selecting another port.
    """
    listener = _bind(host, port, flag=flag, is_shared=is_shared, is_listening=True)
    listener.setblocking(False)
    return listener


def reserve_port(host: str, port: int, *, flag: str) -> socket.socket:
    """Return a socket that reserves a port on which no process listens, for processes that share it.

    The socket receives no connections itself. Raises ListenError.
    """
    with listen(host, port, flag=flag) as unshared:  # fails if another server uses the port, shared or not
        port = unshared.getsockname()[1]
    return _bind(host, port, flag=flag, is_shared=True, is_listening=False)


def _bind(host: str, port: int, *, flag: str, is_shared: bool, is_listening: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last_error = OSError("the host name has no address")
    try:
        addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(_reason(host, port, flag, error)) from error
    for *_, address in addresses:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            if is_listening:
                listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            last_error = error
        else:
            return listener
    raise ListenError(_reason(host, port, flag, last_error)) from last_error


def url_of(host: str, listener: socket.socket) -> str:
    """Return a URL for reaching the socket from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


def _reason(host: str, port: int, flag: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is already in use. Stop the program that uses it, "
            f"or select another port with {flag} (0 selects any free port)."
        )
    if error.errno == errno.EACCES:
        return (
            f"Permission denied when listening on {host}:{port}. Ports below 1024 require privileges; "
            f"select another port with {flag}."
        )
    return f"Cannot listen on {host}:{port}: {error}."
