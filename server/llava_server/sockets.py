"""Sockets to listen on, and in one sentence why there is none."""

from __future__ import annotations

import errno
import socket

__all__ = ["CannotListen", "listen", "url_of"]

_BACKLOG = 2048


class CannotListen(Exception):
    """The address cannot be had; the message says why and the way out."""


def listen(host: str, port: int, *, flag: str) -> socket.socket:
    """Raises CannotListen, which names ``flag``. Of a name's addresses, which may be several machines', the
    first that is this one's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    refused = OSError("the name has no address")
    try:
        addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise CannotListen(_reason(host, port, flag, error)) from error
    for *_, address in addresses:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            refused = error
        else:
            listener.setblocking(False)
            return listener
    raise CannotListen(_reason(host, port, flag, refused)) from refused


def url_of(host: str, listener: socket.socket) -> str:
    """Where this machine reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


def _reason(host: str, port: int, flag: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is taken on {host}: "
            f"stop the program that uses it, or choose another with {flag} (0 takes any free one)"
        )
    if error.errno == errno.EACCES:
        return (
            f"not allowed to listen on {host}:{port}: ports below 1024 need rights; "
            f"choose another with {flag}"
        )
    return f"cannot listen on {host}:{port}: {error}"
