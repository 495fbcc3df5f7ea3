"""``python -m llava_server``: serve until told to leave, then finish what is open and leave with status 0."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI
from llava_wire import JobProducer, QueueUnavailable

from llava_server.app import create_app
from llava_server.drain import Drain
from llava_server.errors import ApiError
from llava_server.services import Services
from llava_server.settings import Settings, load_settings

__all__ = ["main"]

logger = logging.getLogger("llava_server")

_MAX_HEADER_BYTES = 32 * 1024
_LAST_WORDS_S = 2  # for answers that were ended at the drain's limit to reach their readers
_BACKLOG = 2048
_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 left as asked, 1 broke down or could not start, 2 wrong settings."""
    settings = load_settings(sys.argv[1:] if args is None else args)
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        listener = _listen(settings)
        asyncio.run(_look_for_queue(settings))
    except OSError as error:
        sys.stderr.write(f"llava-server: {_cannot_listen(settings, error)}\n")
        return _EXIT_USAGE
    except QueueUnavailable as error:
        listener.close()
        sys.stderr.write(f"llava-server: no queue: {error}; start Redis or Valkey, or set LLAVA_REDIS_URL\n")
        return _EXIT_FAILED
    with listener:
        server = DrainingServer(create_app(settings), settings)
        server.run(sockets=[listener])
    return 0 if server.has_served and not server.failure else _EXIT_FAILED


class DrainingServer(uvicorn.Server):
    """uvicorn, but SIGTERM first drains: health checks are answered until the open answers are done."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self.has_served = True
            sys.stdout.write(f"llava-server listens on {_url(self._settings, sockets[0])}\n")
            sys.stdout.flush()

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


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_listen(settings: Settings, error: OSError) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {settings.port} is taken on {settings.host}: "
            f"stop the program that uses it, or choose another with --port (0 takes any free one)"
        )
    if error.errno == errno.EACCES:
        return f"not allowed to listen on {where}: ports below 1024 need rights; choose another with --port"
    return f"cannot listen on {where}: {error}"


def _url(settings: Settings, listener: socket.socket) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
