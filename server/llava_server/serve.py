"""One controller process: startup checks, serving, and the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from collections.abc import Callable, Iterable

from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.otel_setup import TracingUnavailable, open_tracing

from llava_server.connections import ConnectionLimits
from llava_server.draining_server import DrainingServer
from llava_server.open_files import OpenFilesError, allowed_connections
from llava_server.settings import Settings
from llava_server.sockets import ListenError, listen

__all__ = ["EXIT_FAILED", "START_ERRORS", "announce", "check_services", "report_start_error", "serve"]

# Time after which a thread that parses a large body must leave the interpreter to the event loop. Python's
# default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005
EXIT_FAILED = 1
_EXIT_USAGE = 2


class EvictionError(Exception):
    """Redis may evict keys, and the settings do not accept this."""


START_ERRORS = (OpenFilesError, ListenError, TracingUnavailable, EvictionError, QueueUnavailable)


def serve(settings: Settings, on_ready: Callable[[str, str | None], None], *, is_shared: bool = False) -> int:
    """Serve until SIGTERM and return the exit status.

    ``on_ready`` is called with the URLs of the API and of the admin port once they accept connections.
    ``is_shared`` is whether other controllers listen on the same port.
    """
    with contextlib.ExitStack() as stack:
        try:
            limits = ConnectionLimits.of(settings, allowed_connections(settings.max_connections))
            listener = listen(settings.host, settings.port, flag="--port", is_shared=is_shared)
            stack.enter_context(listener)
            admin = _admin_listener(settings, stack)
            check_services(settings)
        except START_ERRORS as error:
            return report_start_error(error)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        server = DrainingServer(settings, limits, admin, on_ready)
        gc.freeze()  # the objects that imports have created are never garbage
        gc.enable()
        server.run(sockets=[listener])
    return 0 if server.has_served and not server.failure else EXIT_FAILED


def announce(url: str, admin_urls: Iterable[str | None]) -> None:
    """Print the URLs of a server that accepts connections."""
    lines = [f"llava-server is listening on {url}"]
    lines += [f"llava-server admin is listening on {admin_url}" for admin_url in admin_urls if admin_url]
    sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()


def check_services(settings: Settings) -> None:
    """Check what the server needs, so that an error can be reported without a traceback.

    Raises QueueUnavailable, EvictionError or TracingUnavailable.
    """
    if settings.otel:
        open_tracing("llava-server").shutdown()
    asyncio.run(_check_queue(settings))


def report_start_error(error: Exception) -> int:
    """Print an error that prevents the start, and return the exit status."""
    if isinstance(error, QueueUnavailable):
        sys.stderr.write(
            f"llava-server: {error} Start Redis or Valkey, or set LLAVA_REDIS_URL / --redis-url.\n"
        )
        return EXIT_FAILED
    sys.stderr.write(f"llava-server: {error}\n")
    return _EXIT_USAGE


async def _check_queue(settings: Settings) -> None:
    """Check that the queue is available and does not evict requests.

    A script is run, because a node of a cluster replies to a PING even if the queue is on another node.
    Raises QueueUnavailable or EvictionError.
    """
    producer = await ShardedProducer.connect(settings.shards)
    async with contextlib.aclosing(producer):
        await producer.heartbeats()
        policy = await producer.eviction_policy()
    if policy and not settings.allow_eviction:
        raise EvictionError(
            f"Redis has maxmemory-policy {policy}, so it may evict running requests if its memory is full. "
            "Set maxmemory-policy noeviction, or accept this with LLAVA_ALLOW_EVICTION / --allow-eviction."
        )


def _admin_listener(settings: Settings, stack: contextlib.ExitStack) -> socket.socket | None:
    if settings.admin_port is None:
        return None
    return stack.enter_context(listen(settings.admin_host, settings.admin_port, flag="--admin-port"))
