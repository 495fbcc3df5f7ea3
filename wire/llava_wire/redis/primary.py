"""Connections to the current primary: of a single server, of a Sentinel service, or of a cluster.

All keys of a shard have the same hash tag, so a cluster stores them in one slot, and the primary of that slot
behaves like a single server. When a connection is opened, the address of the primary is looked up with
redis-py's clients for Sentinel and Cluster. After an error, ``Link`` closes its connections, so the next
command finds the new primary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff

from llava_wire.redis.address import RedisAddress

__all__ = ["PrimaryPool", "create_pool"]

# A lookup is shared by all connections that are opened within this time, for example at startup.
_LOOKUP_AGE_S = 1.0
# ``Link`` limits the time to connect. redis-py's own limit must be higher, because it counts delays of the
# event loop.
CONNECT_FACTOR = 10
Lookup: TypeAlias = Callable[[], Awaitable[tuple[str, int]]]
OnConnect: TypeAlias = Callable[[AbstractConnection], Awaitable[None]]


def create_pool(
    address: RedisAddress,
    *,
    max_connections: int,
    connect_timeout_s: float,
    on_connect: OnConnect,
    prefix: str,
) -> PrimaryPool:
    """Create a pool of connections to the primary, without implicit retries."""
    options: dict[str, Any] = {
        **address.options,
        "protocol": 2,
        "socket_timeout": None,  # else redis-py can swallow a cancellation (wait_for in Python < 3.12)
        "socket_connect_timeout": connect_timeout_s * CONNECT_FACTOR,
        "retry": _no_retry(),
        "driver_info": None,  # the default reads package metadata from disk for each connection (3.5 ms)
        "redis_connect_func": on_connect,
    }
    if address.path:
        options |= {"connection_class": UnixDomainSocketConnection, "path": address.path}
    elif address.kind == "server":
        host, port = address.hosts[0]
        connection_class = SSLConnection if address.has_tls else Connection
        options |= {"connection_class": connection_class, "host": host, "port": port}
    else:
        primary = Primary(address, connect_timeout_s, prefix)
        looking_up = PrimarySSLConnection if address.has_tls else PrimaryConnection
        options |= {"connection_class": looking_up, "find_primary": primary.find}
    return PrimaryPool(max_connections=max_connections, **options)


class PrimaryPool(ConnectionPool):
    """A connection pool that can close its idle connections while other commands are in progress."""

    async def close_idle(self) -> None:
        """Close all idle connections. Does not raise.

        ``ConnectionPool.disconnect`` leaves the connections in the pool while they are being closed, so that
        a command can receive one of them and fail with an AttributeError. The connections are closed without
        suspending, because a caller that is cancelled here would otherwise leave some of them open.
        """
        idle, self._available_connections = self._available_connections, []
        for connection in idle:
            with contextlib.suppress(exceptions.RedisError, OSError):
                await connection.disconnect(nowait=True)


class Primary:
    """The current primary of a Sentinel service or of the cluster slot that contains the queue."""

    def __init__(self, address: RedisAddress, connect_timeout_s: float, prefix: str) -> None:
        self._address = address
        self._timeout_s = connect_timeout_s
        self._prefix = prefix
        self._found: tuple[str, int] | None = None
        self._found_at = 0.0

    async def find(self) -> tuple[str, int]:
        """Return host and port. Raises redis-py's ConnectionError."""
        if self._found is None or time.monotonic() - self._found_at > _LOOKUP_AGE_S:
            is_sentinel = self._address.kind == "sentinel"
            try:
                self._found = await (self._ask_sentinel() if is_sentinel else self._ask_cluster())
            except (exceptions.RedisError, exceptions.RedisClusterException, OSError, LookupError) as error:
                raise exceptions.ConnectionError(self._failure(error)) from error
            self._found_at = time.monotonic()
        return self._found

    def _failure(self, error: Exception) -> str:
        """Describe why the lookup failed, without redis-py's descriptions of its connections."""
        if isinstance(error, MasterNotFoundError):
            return f"no Sentinel process knows a reachable primary of the service {self._address.service!r}"
        kind = "Sentinel" if self._address.kind == "sentinel" else "the cluster"
        reason = str(error).rstrip(".") or type(error).__name__
        return f"{kind} did not return the address of the primary: {reason}"

    async def _ask_sentinel(self) -> tuple[str, int]:
        options = dict(self._address.sentinel_options)
        options |= {"socket_timeout": self._timeout_s, "socket_connect_timeout": self._timeout_s}
        options |= {"retry": _no_retry(), "ssl": self._address.has_tls}
        sentinel = Sentinel(list(self._address.hosts), sentinel_kwargs=options)
        try:
            host, port = await sentinel.discover_master(self._address.service)
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        return str(host), int(port)

    async def _ask_cluster(self) -> tuple[str, int]:
        nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
        options = dict(self._address.options)
        options.pop("db", None)
        cluster: RedisCluster = RedisCluster(
            startup_nodes=nodes,
            require_full_coverage=False,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=_no_retry(),
            ssl=self._address.has_tls,
            **options,
        )
        try:
            await cluster.initialize()
            node = cluster.get_node_from_key(self._prefix)
            if node is None:
                raise ConnectionRefusedError("no node of the cluster serves the slot of the queue")
            return str(node.host), int(node.port)
        finally:
            await cluster.aclose()


class PrimaryConnection(Connection):
    """A connection that looks up the address of the primary each time it is opened."""

    def __init__(self, *, find_primary: Lookup, **options: Any) -> None:
        super().__init__(**options)
        self._find_primary = find_primary

    async def connect(self) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find_primary()
        await super().connect()  # type: ignore[no-untyped-call]


class PrimarySSLConnection(PrimaryConnection, SSLConnection):
    """The same as `PrimaryConnection`, with TLS."""


def _no_retry() -> Retry:
    return Retry(NoBackoff(), 0)
