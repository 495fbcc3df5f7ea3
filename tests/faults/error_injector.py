"""A proxy that understands the Redis protocol and injects faults into single commands.

``FaultProxy`` interrupts whole connections. This proxy decides for each command, including those with which a
connection begins (AUTH, SELECT) and those that block. A command can fail before it reaches Redis, or after
Redis has executed it, and the client cannot distinguish the two.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from tests.faults.resp import MAX_LINE_BYTES, read_message

__all__ = ["ERROR_REPLIES", "ErrorInjector", "Fault", "FaultKind", "Plan", "running_injector"]

# One reply for each of 20 first words that Redis and Valkey use, and one for a word that no release uses.
ERROR_REPLIES = (
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "READONLY You can't write against a read only replica.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOPERM User server has no permissions to run the 'evalsha' command",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "NOMASTERLINK Can't SYNC while not connected with my master",
    "NOSCRIPT No matching script. Please use EVAL.",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "DENIED Redis is running in protected mode",
    "ERR max number of clients reached",
    "NEWWORD of a later release",
)


class FaultKind(Enum):
    REFUSE = "an error reply instead of execution"
    REPLACE = "an error reply after execution"
    GARBAGE = "bytes that are not a reply, after execution"
    CUT = "a disconnect instead of execution"
    LOSE = "a disconnect after execution"
    TEAR = "a part of the reply, then a disconnect"
    DROP = "no execution and no reply"
    STALL = "execution without a reply"
    DELAY = "a late execution"


_CUTS = (FaultKind.CUT, FaultKind.LOSE, FaultKind.TEAR)


@dataclass(frozen=True)
class Fault:
    """The fault of one command. ``reply`` is an error reply without the leading "-" and the line end."""

    kind: FaultKind
    reply: str = ""
    delay_s: float = 0.0


Plan: TypeAlias = Callable[[bytes], Fault | None]  # request -> fault, or None to forward it normally


class ErrorInjector:
    """A proxy from one Unix socket to another. It runs in the current event loop.

    ``plan`` is called for each command. ``num_faults`` counts the faults by kind and first word.
    """

    def __init__(self, target: Path) -> None:
        self.plan: Plan = lambda _: None
        self.num_faults: Counter[str] = Counter()
        self._target = str(target)
        self._links: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._links.add(task)
        try:
            await self._link(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has closed the connection, a fault cuts it, or the test has ended
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def disconnect(self) -> None:
        """Close all connections."""
        while self._links:
            for link in self._links:
                link.cancel()
            await asyncio.wait(self._links)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target, limit=MAX_LINE_BYTES)
        requests: asyncio.Queue[bytes] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(
                _read_requests(reader, requests)
            ),  # also notices a disconnect of the client
            asyncio.ensure_future(self._serve(requests, writer, far_reader, far_writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            far_writer.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self,
        requests: asyncio.Queue[bytes],
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        """Reply to each request. Return when a fault cuts the connection."""

        async def forward() -> bytes:
            far_writer.write(request)
            return await read_message(far_reader)

        while True:
            request = await requests.get()
            fault = self.plan(request)
            writer.write(await (self._disturb(fault, forward) if fault else forward()))
            await writer.drain()
            if fault and fault.kind in _CUTS:
                return

    async def _disturb(self, fault: Fault, forward: Callable[[], Awaitable[bytes]]) -> bytes:
        """Inject a fault. Return the bytes to send to the client, if any."""
        kind, error = fault.kind, f"-{fault.reply}\r\n".encode()
        self.num_faults[f"{kind.name} {fault.reply.partition(' ')[0]}".strip()] += 1
        await asyncio.sleep(fault.delay_s)
        if kind in (FaultKind.REFUSE, FaultKind.CUT):
            return error if kind is FaultKind.REFUSE else b""
        reply = await forward() if kind is not FaultKind.DROP else b""
        if kind in (FaultKind.DROP, FaultKind.STALL):
            await asyncio.Event().wait()  # until the client disconnects
        replies = {
            FaultKind.REPLACE: error,
            FaultKind.GARBAGE: b"HTTP/1.1 400 Bad Request\r\n",
            FaultKind.LOSE: b"",
            FaultKind.TEAR: reply[:-1],
            FaultKind.DELAY: reply,
        }
        return replies[kind]


async def _read_requests(reader: asyncio.StreamReader, requests: asyncio.Queue[bytes]) -> None:
    while True:
        requests.put_nowait(await read_message(reader))


@contextlib.asynccontextmanager
async def running_injector(target: Path, socket: Path) -> AsyncIterator[ErrorInjector]:
    """Accept connections at ``socket`` and forward them to ``target``."""
    injector = ErrorInjector(target)
    server = await asyncio.start_unix_server(injector.accept, socket, limit=MAX_LINE_BYTES)
    try:
        yield injector
    finally:
        server.close()
        await injector.disconnect()
