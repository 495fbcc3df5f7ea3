"""Middleware that rejects requests for another site's name, which stops DNS rebinding.

The owner of a website can make its name resolve to the address of this server. A browser then regards the
server as a part of that website, so that the website's pages can use and read it, and CORS does not apply.
The browser still sends the website's name in the ``Host`` header. The check matters where access depends only
on the network, that is, without authentication and on the admin port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from llava_server.errors import ApiError
from llava_server.middleware.server_error import send_error

__all__ = [
    "ANY_HOST",
    "HostMiddleware",
    "HostRules",
    "admin_host_rules",
    "api_host_rules",
    "check_host_rule",
    "is_loopback",
]

ANY_HOST = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
# Names by which containers reach the machine that runs them
_CONTAINER_NAMES = frozenset({"host.docker.internal", "host.containers.internal"})
_RULE = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_MAX_QUOTED = 100  # maximum number of characters that an error message quotes from a header


@dataclass(frozen=True)
class HostRules:
    """The hosts that requests may name, in addition to the usual names and addresses of the same machine.

    ``names`` contains host names, ``*.name`` for the subdomains of a name, and addresses. If
    ``accepts_addresses`` is true, all addresses are allowed. This is safe, because rebinding needs a name.
    """

    names: frozenset[str]
    accepts_addresses: bool

    def allows(self, host: str) -> bool:
        """Return whether a ``Host`` header is allowed. The port is ignored, because it can be forwarded."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().removesuffix(".")
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return self._allows_name(name)
        return address.is_loopback or self.accepts_addresses or str(address) in self.names

    def _allows_name(self, name: str) -> bool:
        labels = name.split(".")
        wildcards = {"*." + ".".join(labels[start:]) for start in range(1, len(labels))}
        if labels[-1] == "localhost" or name in _CONTAINER_NAMES:
            return True
        return name in self.names or not wildcards.isdisjoint(self.names)


def api_host_rules(names: Collection[str], *, host: str, has_auth: bool) -> HostRules | None:
    """Return the rules of the API port, or None if all hosts are allowed.

    ``names`` is the setting, and ``host`` is the address to listen on. Health checks and probes use the
    address of a container, so a server that is not limited to loopback addresses accepts all addresses.
    """
    if ANY_HOST in names or (not names and (has_auth or not is_loopback(host))):
        return None
    return HostRules(frozenset(names), accepts_addresses=not is_loopback(host))


def admin_host_rules(names: Collection[str], *, host: str) -> HostRules:
    """Return the rules of the admin port, which never allows all names."""
    return HostRules(frozenset({*names, host.lower()} - {ANY_HOST}), accepts_addresses=not is_loopback(host))


def check_host_rule(rule: str) -> str:
    """Return an entry of the setting, normalized for the comparison with hosts. Raises ValueError."""
    lower = rule.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(lower.strip("[]")))
    except ValueError:
        if rule != ANY_HOST and not _RULE.fullmatch(lower):
            raise ValueError(
                f"{rule!r} is not a host name without a port, such as llava.example.com or *.example.com"
            ) from None
    return lower


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on this host accepts only connections from the same machine."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HostMiddleware:
    """Middleware that responds with 403 unless there is exactly one ``Host`` header and it is allowed."""

    def __init__(self, app: ASGIApp, *, rules: HostRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and self._rules.allows(hosts[0]):
            return await self._app(scope, receive, send)
        given = ", ".join(hosts)[:_MAX_QUOTED]
        error = ApiError(
            "host_not_allowed",
            f"The host {given!a} is not allowed. Use localhost or 127.0.0.1 in the URL, or add the host to "
            "LLAVA_ALLOWED_HOSTS / --allowed-hosts.",
        )
        return await send_error(scope, send, error)
