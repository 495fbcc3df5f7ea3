"""A server that serves until SIGTERM and then finishes in-flight requests."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from llava_server.app import create_app
from llava_server.connections import ConnectionGuard, ConnectionLimits
from llava_server.errors import ApiError
from llava_server.lifespan import Services, services_of_app
from llava_server.metrics import Metrics
from llava_server.operator.server import AdminServer
from llava_server.settings import Settings
from llava_server.shutdown import GracefulShutdown
from llava_server.sockets import BACKLOG, url_of
from llava_server.supervised_tasks import SupervisedTasks

__all__ = ["DrainingServer"]

logger = logging.getLogger("llava_server")

_FLUSH_TIMEOUT_S = 2  # extra time after the drain timeout to send the final bytes of aborted responses


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM.

    It continues to serve health checks until all in-flight requests finish. ``on_ready`` is called with the
    URLs of the API and of the admin port once they accept connections.
    """

    def __init__(
        self,
        settings: Settings,
        limits: ConnectionLimits,
        admin: socket.socket | None,
        on_ready: Callable[[str, str | None], None],
    ) -> None:
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
        self._on_ready = on_ready
        self._admin_listener = admin
        self._admin: AdminServer | None = None
        self._admin_task: asyncio.Task[None] | None = None
        self._admin_failure: str | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.has_served = True
            admin_url = None
            if self._admin_listener is not None:
                self._start_admin_server(self._admin_listener)
                admin_url = url_of(self._settings.admin_host, self._admin_listener)
            self._on_ready(url_of(self._settings.host, sockets[0]), admin_url)

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
