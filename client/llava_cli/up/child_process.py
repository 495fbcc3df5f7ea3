"""A child process of ``llava-serve up``.

Each child runs in its own session. Ctrl-C in the terminal therefore reaches only the parent, which then stops
the children in order. Each child is launched through ``parent_death_signal`` so that it does not outlive the
parent.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

__all__ = ["Child", "Program", "describe_exit"]

_PARENT_DEATH_SIGNAL = str(Path(__file__).with_name("parent_death_signal.py"))
_TAIL_LINES = 20
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # sequences that move the cursor of a terminal
_READ_BYTES = 1 << 16
_READ_REST_S = 1.0  # limited, because a daemon in another session may keep the pipe open


@dataclass(frozen=True)
class Program:
    """A program to run.

    ``stop_grace_s`` is how long the program may take to exit after SIGTERM. ``is_worker`` is whether demo
    mode may kill it.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(
        repr=False
    )  # not in the repr, because it contains the Redis URL and API keys
    stop_grace_s: float = 10.0
    is_worker: bool = False


class Child:
    """A running program.

    ``on_line(name, line)`` is called for each output line. ``tail`` holds the last lines.
    """

    def __init__(self, program: Program, on_line: Callable[[str, str], None]) -> None:
        self.program = program
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process ID of the program, or None if it has not started yet."""
        return self._process.pid if self._process else None

    @property
    def reader_error(self) -> BaseException | None:
        """The error because of which the output is no longer read. The program then fails when it writes."""
        reader = self._reader
        return reader.exception() if reader and reader.done() and not reader.cancelled() else None

    async def start(self) -> None:
        """Start or restart the program.

        Must be called in the main thread, because the parent death signal is sent when the calling thread
        exits.
        """
        await self.aclose()
        # asyncio.subprocess.PIPE is not used, because wait() would then not return until every process that
        # inherited the pipe had closed it.
        read_end, write_end = os.pipe()
        pipe = os.fdopen(read_end, "rb", buffering=0)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", _PARENT_DEATH_SIGNAL, str(os.getpid())),
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(self.program.environment),
                start_new_session=True,
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            os.close(write_end)
        self._reader = asyncio.create_task(self._read_lines(pipe))

    async def wait(self) -> int:
        """Wait until the process has exited and its output has been read.

        Return the exit status, or the negative signal number if the process was killed by a signal. Kill any
        processes left in its process group, because they would continue to hold memory, a port or the output
        pipe.
        """
        process, reader = self._running()
        status = await process.wait()
        self.kill()
        await asyncio.wait([reader], timeout=_READ_REST_S)
        return status

    async def stop(self, kill_now: asyncio.Event) -> None:
        """Send SIGTERM. Kill the process group after the grace period or once ``kill_now`` is set."""
        if self._process is None or self._process.returncode is not None:
            return
        process, _ = self._running()
        with suppress(ProcessLookupError):
            process.terminate()
        ended, killing = asyncio.create_task(self.wait()), asyncio.create_task(kill_now.wait())
        await asyncio.wait(
            [ended, killing], timeout=self.program.stop_grace_s, return_when=asyncio.FIRST_COMPLETED
        )
        killing.cancel()
        if not ended.done():
            self.kill()
        await ended

    def kill(self) -> None:
        """Kill the process group, as if the program had crashed."""
        process, _ = self._running()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Close the output pipe of a process that has exited."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _running(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        assert self._process is not None and self._reader is not None, "call start() first"
        return self._process, self._reader

    async def _read_lines(self, pipe: IO[bytes]) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        try:
            # readline() is not used, because it fails on lines longer than its limit. The child would then
            # block, because its output would no longer be read.
            rest = b""
            while chunk := await stream.read(_READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._handle_line(line)
                rest = rest[-_READ_BYTES:]
            if rest:
                self._handle_line(rest)
        finally:
            transport.close()

    def _handle_line(self, line: bytes) -> None:
        text = _CONTROL.sub("", line.decode(errors="replace").rstrip().rpartition("\r")[2])
        self.tail.append(text)
        self._on_line(self.program.name, text)


def describe_exit(status: int) -> str:
    """Return a phrase that describes ``status``, such as "exited with status 1"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
