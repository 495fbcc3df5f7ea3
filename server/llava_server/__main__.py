"""``python -m llava_server``: serve until told to leave, then finish what is open and leave with status 0."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from llava_wire.controller_side.producer import JobProducer
from llava_wire.errors import QueueUnavailable
from llava_wire.otel import TracingUnavailable, open_tracing

from llava_server.app import create_app
from llava_server.errors import ApiError
from llava_server.lifespan import Services
from llava_server.log_format import set_up_logging
from llava_server.operator.server import AdminServer
from llava_server.settings import Settings, load_settings
from llava_server.shutdown import Drain
from llava_server.sockets import CannotListen, listen, url_of

__all__ = ["main"]

logger = logging.getLogger("llava_server")

_MAX_HEADER_BYTES = 32 * 1024
_LAST_WORDS_S = 2  # for answers that were ended at the drain's limit to reach their readers
_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 left as asked, 1 broke down or could not start, 2 wrong settings."""
    settings = load_settings(sys.argv[1:] if args is None else args)
    set_up_logging(settings.log_level, settings.log_format)
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(listen(settings.host, settings.port, flag="--port"))
            admin = _admin_listener(settings, stack)
            if settings.otel:
                open_tracing("llava-server").shutdown()  # it says now, in one line, what is missing
            asyncio.run(_look_for_queue(settings))
        except (CannotListen, TracingUnavailable) as error:
            sys.stderr.write(f"llava-server: {error}\n")
            return _EXIT_USAGE
        except QueueUnavailable as error:
            sys.stderr.write(
                f"llava-server: no queue: {error}; start Redis or Valkey, or set LLAVA_REDIS_URL\n"
            )
            return _EXIT_FAILED
        server = DrainingServer(create_app(settings), settings, admin)
        server.run(sockets=[listener])
    return 0 if server.has_served and not server.failure else _EXIT_FAILED


class DrainingServer(uvicorn.Server):
    """uvicorn, but SIGTERM first drains: health checks are answered until the open answers are done."""

    def __init__(self, app: FastAPI, settings: Settings, admin: socket.socket | None) -> None:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
        super().__init__(config)
        self.has_served = False
        self.failure: str | None = None
        self._app = app
        self._settings = settings
        self._admin_listener = admin
        self._admin = AdminServer(app)
        self._admin_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.has_served = True
            sys.stdout.write(f"llava-server listens on {url_of(self._settings.host, sockets[0])}\n")
            if self._admin_listener is not None:
                self._admin_task = asyncio.create_task(self._admin.serve([self._admin_listener]))
                where = url_of(self._settings.admin_host, self._admin_listener)
                sys.stdout.write(f"llava-server admin listens on {where}\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._admin_task is not None:
            self._admin.should_exit = True
            await self._admin_task
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's)
        """The first signal drains; an impatient second Ctrl-C goes at once."""
        if self._drain.is_draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        controller = self._services.controller
        self.failure = controller.failure
        if self.failure:
            return True
        if self._drain.is_draining:
            self._app.state.batch_driver.leave()
        if self._drain.is_timed_out:
            logger.warning("%d answers are not done and are ended", controller.num_answers)
            controller.end_all(
                ApiError("shutting_down", "this server had to leave before the answer was done")
            )
            return True
        return self._drain.refuses_new and controller.num_answers == 0

    @property
    def _drain(self) -> Drain:
        drain = self._app.state.drain
        assert isinstance(drain, Drain)
        return drain

    @property
    def _services(self) -> Services:
        services = self._app.state.services
        assert isinstance(services, Services)
        return services


async def _look_for_queue(settings: Settings) -> None:
    """Raises QueueUnavailable now, in one line, and not later out of the depths of the app's start."""
    producer = await JobProducer.connect(settings.redis_url.get_secret_value())
    await producer.aclose()


def _admin_listener(settings: Settings, stack: contextlib.ExitStack) -> socket.socket | None:
    if settings.admin_port is None:
        return None
    return stack.enter_context(listen(settings.admin_host, settings.admin_port, flag="--admin-port"))


if __name__ == "__main__":
    sys.exit(main())
