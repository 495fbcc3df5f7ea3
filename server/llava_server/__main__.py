"""``python -m llava_server``: serve until SIGTERM, then finish in-flight requests and exit with status 0."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from types import FrameType

import uvicorn
from llava_wire.controller_side.sharded_producer import ShardedProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.otel_setup import TracingUnavailable, open_tracing

from llava_server.app import create_app
from llava_server.connections import ConnectionGuard, ConnectionLimits
from llava_server.errors import ApiError
from llava_server.lifespan import Services, services_of_app
from llava_server.log_format import configure_logging
from llava_server.metrics import Metrics
from llava_server.open_files import OpenFilesError, allowed_connections
from llava_server.operator.server import AdminServer
from llava_server.settings import Settings, load_settings
from llava_server.shutdown import GracefulShutdown
from llava_server.sockets import BACKLOG, ListenError, listen, url_of
from llava_server.supervised_tasks import SupervisedTasks

__all__ = ["main"]

logger = logging.getLogger("llava_server")

_FLUSH_TIMEOUT_S = 2  # extra time after the drain timeout to send the final bytes of aborted responses
# Time after which a thread that parses a large body must leave the interpreter to the event loop. Python's
# default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005
_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main(args: Sequence[str] | None = None) -> int:
    """Run the server and return the exit status.

    The status is 0 after a graceful shutdown, 1 after a failure and 2 if the settings are invalid.
    """
    settings = load_settings(sys.argv[1:] if args is None else args)
    configure_logging(settings.log_level, settings.log_format)
    with contextlib.ExitStack() as stack:
        try:
            limits = ConnectionLimits.of(settings, allowed_connections(settings.max_connections))
            listener = stack.enter_context(listen(settings.host, settings.port, flag="--port"))
            admin = _admin_listener(settings, stack)
            if settings.otel:
                open_tracing("llava-server").shutdown()  # reports missing packages without a traceback
            asyncio.run(_check_queue(settings))
        except (OpenFilesError, ListenError, TracingUnavailable, EvictionError) as error:
            sys.stderr.write(f"llava-server: {error}\n")
            return _EXIT_USAGE
        except QueueUnavailable as error:
            sys.stderr.write(
                f"llava-server: {error} Start Redis or Valkey, or set LLAVA_REDIS_URL / --redis-url.\n"
            )
            return _EXIT_FAILED
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        server = DrainingServer(settings, limits, admin)
        server.run(sockets=[listener])
    return 0 if server.has_served and not server.failure else _EXIT_FAILED


class EvictionError(Exception):
    """Redis may evict keys, and the settings do not accept this."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM.

    It continues to serve health checks until all in-flight requests finish.
    """

    def __init__(self, settings: Settings, limits: ConnectionLimits, admin: socket.socket | None) -> None:
        metrics = Metrics()
        self._shutdown = GracefulShutdown(grace_s=settings.drain_grace_s, timeout_s=settings.drain_timeout_s)
        self._app = create_app(settings, self._shutdown, metrics)
        config = uvicorn.Config(
            self._app,
            loop="uvloop",
            http=ConnectionGuard(limits, metrics).protocol_class,
            ws="none",
            backlog=BACKLOG,  # uvicorn calls listen() again
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
        )
        super().__init__(config)
        self.has_served = False
        self.failure: str | None = None
        self._settings = settings
        self._admin_listener = admin
        self._admin: AdminServer | None = None
        self._admin_task: asyncio.Task[None] | None = None
        self._admin_failure: str | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.has_served = True
            sys.stdout.write(f"llava-server is listening on {url_of(self._settings.host, sockets[0])}\n")
            if self._admin_listener is not None:
                self._start_admin_server(self._admin_listener)
                admin_url = url_of(self._settings.admin_host, self._admin_listener)
                sys.stdout.write(f"llava-server admin is listening on {admin_url}\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._admin is not None and self._admin_task is not None:
            self._admin.should_exit = True
            await asyncio.wait({self._admin_task})
        await super().shutdown(sockets)

    def _start_admin_server(self, listener: socket.socket) -> None:
        """Start the admin server. If it crashes, drain and exit, because its socket cannot be reused."""
        self._admin = AdminServer(self._services)
        tasks = SupervisedTasks(self._services.metrics.task_crashed)
        self._admin_task = tasks.start(
            "admin server",
            partial(self._admin.serve, [listener]),
            max_restarts=0,
            on_final_crash=self._drain_after_crash,
        )

    def _drain_after_crash(self, error: BaseException) -> None:
        self._admin_failure = f"The admin server failed with {type(error).__name__}."
        self._shutdown.begin()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Start draining. A second Ctrl-C exits immediately."""
        if self._shutdown.is_draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._shutdown.begin()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        controller = self._services.controller
        self.failure = controller.failure or self._admin_failure
        if controller.failure:
            return True
        if self._shutdown.is_timed_out:
            logger.warning("drain timeout reached, aborting %d in-flight responses", controller.num_open)
            controller.fail_all(
                ApiError("shutting_down", "The server shut down before the response was complete. Retry.")
            )
            return True
        return self._shutdown.rejects_requests and controller.num_open == 0

    @property
    def _services(self) -> Services:
        return services_of_app(self._app)


async def _check_queue(settings: Settings) -> None:
    """Check the queue before the app starts, so that ``main`` can report an error on one line.

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


if __name__ == "__main__":
    sys.exit(main())
