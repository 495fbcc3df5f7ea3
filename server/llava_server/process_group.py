"""Several controllers that share one port, for more requests than one CPU core can process.

The parent process starts the controllers, restarts those that crash, and passes signals on to them. It
handles no requests. Each controller has its own listening socket with SO_REUSEPORT, and Linux distributes new
connections evenly over these sockets. With one inherited socket, the controllers that wake first get most of
the connections (docs/log.md). The controllers share only the queue, like those on different machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import msgspec

from llava_server.controller_process import ControllerConfig, ReadyMessage
from llava_server.serve import START_ERRORS, announce, check_services, report_start_error
from llava_server.settings import Settings
from llava_server.sockets import reserve_port

__all__ = ["run_process_group"]

logger = logging.getLogger("llava_server")

_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 15.0  # before a restart
_STABLE_S = 60.0  # a controller that has run for this time is restarted without a longer delay
_MAX_MESSAGE_BYTES = 4096


def run_process_group(settings: Settings, args: Sequence[str]) -> int:
    """Run ``settings.processes`` controllers until SIGTERM and return the exit status.

    ``args`` are the flags from which the settings were loaded.
    """
    try:
        placeholder = reserve_port(settings.host, settings.port, flag="--port")
        check_services(settings)
    except START_ERRORS as error:
        return report_start_error(error)
    with placeholder:
        port: int = placeholder.getsockname()[1]
        return asyncio.run(ProcessGroup(settings.processes, port, args).run())


class ProcessGroup:
    """The controllers of one server."""

    def __init__(self, num_processes: int, port: int, args: Sequence[str]) -> None:
        self._num_processes = num_processes
        self._port = port
        self._args = tuple(args)
        self._running: dict[int, asyncio.subprocess.Process] = {}  # by index
        self._ready: dict[int, ReadyMessage] = {}  # by index; of the controllers that have served requests
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run the controllers until they are stopped. Return the highest of their last exit statuses."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle_signal, number)
        return max(await asyncio.gather(*map(self._keep_running, range(self._num_processes))))

    def _handle_signal(self, number: signal.Signals) -> None:
        """Let all controllers drain. A second Ctrl-C lets them exit immediately."""
        is_repeated = self._stopping.is_set() and number is signal.SIGINT
        self._stop(signal.SIGINT if is_repeated else signal.SIGTERM)

    def _stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._stopping.set()
        for process in self._running.values():
            process.send_signal(number)

    async def _keep_running(self, index: int) -> int:
        """Run a controller, and restart it until the group is stopped. Return its last exit status."""
        delay_s = _FIRST_DELAY_S
        while True:
            started_at = time.monotonic()
            status = await self._run_once(index)
            if index not in self._ready:  # its error would occur again
                self._stop()
            if self._stopping.is_set():
                return 0 if status == -signal.SIGTERM else abs(status)
            if time.monotonic() - started_at >= _STABLE_S:
                delay_s = _FIRST_DELAY_S
            reason = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
            logger.error("controller %d %s; restarting in %g s", index, reason, delay_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
                return abs(status)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    async def _run_once(self, index: int) -> int:
        """Run a controller until it exits. Return its exit status, or the negative number of a signal."""
        read_end, write_end = os.pipe()
        config = ControllerConfig(index, self._port, write_end, os.getpid())
        with open(read_end, "rb", buffering=0) as pipe:
            try:
                process = self._running[index] = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "llava_server.controller_process"),
                    *(msgspec.json.encode(config).decode(), *self._args),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # so that Ctrl-C reaches only this process
                    pass_fds=(write_end,),
                )
            finally:
                os.close(write_end)
            if self._stopping.is_set():
                process.terminate()
            if message := await asyncio.to_thread(pipe.read, _MAX_MESSAGE_BYTES):
                self._report_ready(index, msgspec.json.decode(message, type=ReadyMessage))
        status = await process.wait()
        del self._running[index]
        return status

    def _report_ready(self, index: int, message: ReadyMessage) -> None:
        """Print the URLs once all controllers are ready."""
        was_ready = len(self._ready) == self._num_processes
        self._ready[index] = message
        if was_ready:
            logger.info("controller %d is ready again", index)
        elif len(self._ready) == self._num_processes:
            admin_urls = [self._ready[each].admin_url for each in sorted(self._ready)]
            announce(message.url, admin_urls)
