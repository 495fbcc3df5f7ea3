"""Parsing of Redis URLs: one server, Sentinel, or Cluster.

    redis://[user:password@]host[:port][/database]
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/database]
    redis+cluster://[user:password@]host[:port][,host[:port]...]
    unix://[user:password@]/path/of/socket[?db=database]

``rediss`` instead of ``redis`` selects TLS. Special characters in the user and the password may be
percent-encoded, but need not be. Options follow as a query string (see ``_OPTIONS``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote

__all__ = ["RedisAddress", "RedisURLError", "parse_redis_url"]

SCHEMES = (
    "redis://, rediss://, redis+sentinel://, rediss+sentinel://, redis+cluster://, rediss+cluster://, unix://"
)
_KINDS: dict[str, Literal["server", "sentinel", "cluster"]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_DEFAULT_PORTS = {"server": 6379, "cluster": 6379, "sentinel": 26379}
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<name>[A-Za-z0-9_.-]+))(?::(?P<port>\d{1,5}))?")
_MAX_PORT = 65535


class RedisURLError(ValueError):
    """A Redis URL is invalid. The message is a phrase without a period, and never contains a secret."""


@dataclass(frozen=True, repr=False)
class RedisAddress:
    """The location of a Redis server, and the options of connections to it.

    ``hosts`` contains (host, port) pairs: one for a server, or the known nodes of a cluster or of Sentinel.
    It is empty for a Unix socket, which has a ``path``. ``service`` is the name that Sentinel monitors.
    ``options`` and ``sentinel_options`` are keyword arguments for connections of redis-py to Redis and to
    Sentinel.
    """

    kind: Literal["server", "sentinel", "cluster"]
    has_tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Omit the options, which contain secrets."""
        return f"<RedisAddress {self.kind} {self.path or self.hosts}>"

    @property
    def location(self) -> str:
        """The hosts, the service and the database, or the URL of the socket, without secrets.

        Examples: "queue:6379/0" and "unix:///run/redis.sock?db=0".
        """
        database = self.options.get("db", 0)
        if self.path:
            return f"unix://{quote(self.path)}?db={database}"
        hosts = ",".join(sorted(f"{host}:{port}" for host, port in self.hosts))
        service = f"/{self.service}" if self.service else ""
        return f"{hosts}{service}/{database}"


def parse_redis_url(url: str) -> RedisAddress:
    """Parse a URL. Raises RedisURLError."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in _KINDS:
        raise RedisURLError(f"the scheme is missing or not supported; use one of {SCHEMES}")
    kind, has_tls = _KINDS[scheme], scheme.startswith("rediss")
    credentials, location, query = _split(rest)
    options, sentinel_options = _parse_options(query, kind=kind, has_tls=has_tls)
    options = {**_parse_credentials(credentials), **options}
    if scheme == "unix":
        return RedisAddress(kind, path=_parse_path(location), options=_with_database(options, "", kind))
    authority, _, path = location.partition("/")
    hosts = _parse_hosts(authority, kind)
    service, database = _parse_service(path) if kind == "sentinel" else ("", path)
    return RedisAddress(
        kind,
        has_tls=has_tls,
        hosts=hosts,
        service=service,
        options=_with_database(options, database, kind),
        sentinel_options=sentinel_options,
    )


def _split(rest: str) -> tuple[str, str, str]:
    """Split the part after the scheme into credentials, location and query.

    The credentials end at the last "@", so a user name and a password may contain any character. In the
    query, "@" must be percent-encoded.
    """
    credentials, separator, location = rest.rpartition("@")
    if not separator:
        credentials, location = "", rest
    location, _, query = location.partition("?")
    return credentials, location, query


def _parse_credentials(text: str) -> dict[str, Any]:
    user, separator, password = text.partition(":")
    credentials: dict[str, Any] = {}
    if user:
        credentials["username"] = unquote(user)
    if separator and password:
        credentials["password"] = unquote(password)
    return credentials


def _parse_hosts(authority: str, kind: str) -> tuple[tuple[str, int], ...]:
    names = [""] if not authority else authority.split(",")
    if kind == "server" and len(names) > 1:
        raise RedisURLError(
            "several hosts require redis+sentinel:// or redis+cluster://; redis:// supports only one"
        )
    return tuple(_parse_host(name, kind) for name in names)


def _parse_host(text: str, kind: str) -> tuple[str, int]:
    if not text:
        return "localhost", _DEFAULT_PORTS[kind]
    match = _HOST.fullmatch(text)
    if match is None:
        raise RedisURLError("the host or the port after the credentials is invalid; expected host:port")
    port = int(match["port"] or _DEFAULT_PORTS[kind])
    if not 0 < port <= _MAX_PORT:
        raise RedisURLError(f"the port is {port}; it must be from 1 to {_MAX_PORT}")
    return match["ipv6"] or match["name"], port


def _parse_service(path: str) -> tuple[str, str]:
    """Return the service name and the database of a Sentinel URL."""
    service, _, database = path.partition("/")
    if not service:
        raise RedisURLError(
            "the service name is missing; expected redis+sentinel://host:port/service, for example /mymaster"
        )
    return unquote(service), database


def _parse_path(location: str) -> str:
    if not location.startswith("/"):
        raise RedisURLError("the path of the Unix socket is missing; expected unix:///path/of/socket")
    return unquote(location)


def _with_database(options: dict[str, Any], text: str, kind: str) -> dict[str, Any]:
    text = text.strip("/")
    if text and "db" not in options:
        options = {**options, "db": _parse_database(text)}
    if kind == "cluster" and options.get("db"):
        raise RedisURLError("a cluster supports only database 0; omit the database from the URL")
    return options


def _parse_database(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RedisURLError("the database after the host is not a number; expected a number such as /0")
    return int(text)


def _parse_flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


def _parse_verification(text: str) -> str:
    if text not in ("none", "optional", "required"):
        raise ValueError(text)
    return text


# The options in the query string. Those beginning with "ssl_" require TLS.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _parse_database,
    "client_name": str,
    "socket_keepalive": _parse_flag,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": _parse_verification,
    "ssl_check_hostname": _parse_flag,
}
# Credentials for Sentinel itself, which may differ from those for Redis.
_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


def _parse_options(query: str, *, kind: str, has_tls: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options for connections to Redis and to Sentinel."""
    options: dict[str, Any] = {}
    sentinel_options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in _SENTINEL_OPTIONS and kind == "sentinel":
            sentinel_options[_SENTINEL_OPTIONS[name]] = value
            continue
        if name not in _OPTIONS:
            supported = ", ".join(_OPTIONS if kind != "sentinel" else (*_OPTIONS, *_SENTINEL_OPTIONS))
            raise RedisURLError(f"an option after '?' is not supported; use {supported}")
        if name.startswith("ssl_") and not has_tls:
            raise RedisURLError(f"the option {name} requires TLS; use a scheme that begins with rediss")
        try:
            options[name] = _OPTIONS[name](value)
        except RedisURLError:
            raise
        except ValueError:
            raise RedisURLError(f"the value of the option {name} is invalid") from None
    tls_options = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return options, {**tls_options, **sentinel_options}
