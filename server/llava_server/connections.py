"""The limits of one listening socket's connections: their number, their timeouts and their unsent data.

uvicorn has a timeout only for idle connections that have already sent a request. ``Connection`` extends its
HTTP/1.1 protocol so that a ``ConnectionGuard`` knows all connections. Twice per second or more, the guard
determines what each connection is waiting for, and closes the connections whose clients are too slow. If a
limit on the number of connections is reached, a new connection replaces the one that has waited longest for
its client, so that connections that do nothing cannot keep clients out. Active connections are never closed.
Instead, an address may have at most as many connections as are free, so that n addresses leave 1/(n + 1) of
all connections to others.

Only the client's side is timed: a connection whose request is being processed, or whose response is read as
fast as it is generated, has no deadline. Data is parsed in turns (see ``ParseTurns``).
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import h11
import msgspec
from h11 import IDLE, SEND_BODY, SEND_RESPONSE, SERVER
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from h11._writers import ChunkedWriter
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from llava_server.body_writer import add_body_writer
from llava_server.client_address import client_of
from llava_server.error_response import to_error
from llava_server.errors import ApiError, error_headers
from llava_server.metrics import Metrics
from llava_server.parse_turns import ParseTurns
from llava_server.request_context import abandon_request
from llava_server.settings import Settings

__all__ = ["ConnectionGuard", "ConnectionLimits"]

_MIB = 2**20
_MAX_SWEEP_S = 0.5
_BODY_GRACE_S = 5.0  # the application has this time to reject a late body with status 408
_PROGRESS_BYTES = 1 << 16  # a client that reads less than this within the timeout counts as stalled
_MIN_STALL_S = 1.0  # uploads and downloads that are slower than this can be closed to make room
_MAX_REJECTED = 16  # rejected connections that are open at a time; others are closed without a response
_REJECTED_S = 1.0
_MAX_HEAD_BYTES = 32 * 1024  # replaces uvicorn's setting h11_max_incomplete_event_size
_MAX_HEADERS = 256
_BLANK_LINE = re.compile(rb"\n\r?\n")  # h11 accepts lines that end with LF
_MAX_CHUNK_BYTES = 2**30  # more than LLAVA_MAX_BODY_MB allows; a smaller chunk can exceed only that limit
# A client may send 1024 small chunks, and further ones if the average size is at least 256 bytes.
_NUM_SMALL_CHUNKS, _MIN_CHUNK_BYTES = 1024, 256


class Wait(enum.Enum):
    """What a client has to do next. The value is the reason in the metric of closed connections."""

    REQUEST = "idle"  # send another request
    HEADER = "header_timeout"  # send the first request, or the rest of a request's headers
    BODY = "body_timeout"  # send the rest of the request's body
    READ = "write_timeout"  # read the response


_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
_IDLE = (Wait.REQUEST, Wait.HEADER)


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """The limits of a ConnectionGuard."""

    max_connections: int
    max_address_connections: int
    has_shares: bool  # whether an address may have only as many connections as are free
    max_unsent_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    send_timeout_s: float

    @classmethod
    def of(cls, settings: Settings, max_connections: int | None = None) -> ConnectionLimits:
        """Return the limits in the settings. ``max_connections`` replaces the setting if it is lower."""
        most = min(settings.max_connections, max_connections or settings.max_connections)
        return cls(
            max_connections=most,
            max_address_connections=min(settings.max_address_connections, most),
            has_shares=settings.max_address_connections < settings.max_connections,
            max_unsent_bytes=settings.max_unsent_mb * _MIB,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            send_timeout_s=settings.send_timeout_s,
        )

    def timeout_s(self, wait: Wait) -> float:
        """Return the maximum time to wait for a client."""
        return {
            Wait.REQUEST: self.idle_timeout_s,
            Wait.HEADER: self.header_timeout_s,
            Wait.BODY: self.body_timeout_s + _BODY_GRACE_S,
            Wait.READ: self.send_timeout_s,
        }[wait]


class ConnectionGuard:
    """The connections of one listening socket. All methods are called in the event loop."""

    def __init__(self, limits: ConnectionLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._by_address: defaultdict[str | None, set[Connection]] = defaultdict(set)
        self._rejected: set[Connection] = set()
        self._num_connections = 0
        # candidates for _make_room, per address and in total; None is the key of the total
        self._candidates: dict[str | None, deque[Connection]] = {}
        self._sweep_s = min(_MAX_SWEEP_S, *(limits.timeout_s(wait) / 4 for wait in Wait))
        self._timer: asyncio.TimerHandle | None = None
        error = ApiError("overloaded", "The server has too many open connections. Retry.", retry_after_s=1.0)
        self._rejection = _encoded_response(error)
        self.parse_turns = ParseTurns()

    @property
    def protocol_class(self) -> type[asyncio.Protocol]:
        """The protocol for uvicorn's setting ``http``. This guard limits all of its connections."""
        guard = self

        class GuardedConnection(Connection):
            def __init__(self, *args: Any, **fields: Any) -> None:
                super().__init__(*args, **fields, guard=guard)

        return GuardedConnection

    def admit(self, connection: Connection) -> None:
        """Add a new connection. If a limit is reached, close another connection or reject this one."""
        address = connection.address
        if not self._has_room(address):
            self._reject(connection)
            return
        self._by_address[address].add(connection)
        for key in {address, None} & self._candidates.keys():
            self._candidates[key].append(connection)
        self._count(+1)
        if self._timer is None:
            self._timer = connection.loop.call_later(self._sweep_s, self._sweep, connection.loop)

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection. Further calls are no-ops."""
        self._rejected.discard(connection)
        if self._is_open(connection):
            self._by_address[connection.address].remove(connection)
            self._count(-1)
        if not self._by_address.get(connection.address):
            self._by_address.pop(connection.address, None)

    def count_invalid(self) -> None:
        """Count a connection that closes because its client sent an invalid request."""
        self._metrics.connection_closed("invalid_request")

    def limit_unsent(self) -> None:
        """Close the connections that have been stalled longest until the unsent data is below the limit."""
        stalled = [connection for connection in self._connections() if connection.num_unsent_bytes]
        stalled.sort(key=lambda connection: connection.waiting_since)
        total = sum(connection.num_unsent_bytes for connection in stalled)
        for connection in stalled:
            if total <= self._limits.max_unsent_bytes:
                return
            total -= connection.num_unsent_bytes
            self._close(connection, "unsent_limit")

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections whose clients are too slow."""
        self._timer = loop.call_later(self._sweep_s, self._sweep, loop) if self._num_connections else None
        self._candidates.clear()
        now = loop.time()
        for connection in list(self._connections()):
            connection.observe(now)
            wait = connection.wait
            if wait and now - connection.waiting_since >= self._limits.timeout_s(wait):
                self._close(connection, wait.value)

    def _has_room(self, address: str | None) -> bool:
        """Return whether an address may have another connection. If necessary, close one that is waiting."""
        limits = self._limits
        num_free = limits.max_connections - self._num_connections
        if address is None:
            return num_free > 0 or self._make_room(None, "connection_limit")
        num_held = len(self._by_address.get(address, ()))
        if num_held >= limits.max_address_connections:
            return self._make_room(address, "address_limit")
        if num_held < num_free or (num_free and not limits.has_shares):
            return True
        return self._make_room(None, "connection_limit", more_than=num_held) or (
            num_held > 0 and self._make_room(address, "connection_limit")
        )

    def _make_room(self, address: str | None, reason: str, *, more_than: int = 0) -> bool:
        """Close the connection that has waited longest for its client, and return whether there is one.

        Idle connections are closed first. ``address`` restricts the search to the connections of a client.
        If it is None, the connections of the addresses that have the most are closed first, and only those of
        addresses that have more than ``more_than``. The candidates are sorted once per sweep, because an
        attacker could open thousands of connections per second.
        """
        if address not in self._candidates:
            self._candidates[address] = deque(
                self._all_waiting() if address is None else self._waiting(address)
            )
        candidates = self._candidates[address]
        while candidates:
            connection = candidates.popleft()
            if not self._is_open(connection):
                continue
            if len(self._by_address[connection.address]) <= more_than:
                candidates.appendleft(connection)
                return False
            now = connection.loop.time()
            connection.observe(now)  # it may have become active since the last sweep
            if connection.wait in _IDLE or (
                connection.wait and now - connection.waiting_since >= _MIN_STALL_S
            ):
                self._close(connection, reason)
                return True
        return False

    def _waiting(self, address: str | None) -> list[Connection]:
        """Return the connections of an address that wait for their client, the first to be closed first."""
        waiting = [connection for connection in self._by_address[address] if connection.wait]
        return sorted(waiting, key=_closing_order)

    def _all_waiting(self) -> list[Connection]:
        """Return all connections that wait for their client, those of the addresses with the most first."""
        numbered = [
            (num_left, connection)
            for address, group in self._by_address.items()
            for num_left, connection in zip(count(len(group), -1), self._waiting(address))
        ]
        numbered.sort(key=lambda each: (-each[0], *_closing_order(each[1])))
        return [connection for _, connection in numbered]

    def _reject(self, connection: Connection) -> None:
        self._metrics.connection_closed("rejected")
        if len(self._rejected) < _MAX_REJECTED:
            self._rejected.add(connection)
            connection.reject(self._rejection)
        else:
            connection.end()

    def _is_open(self, connection: Connection) -> bool:
        return connection in self._by_address.get(connection.address, ())

    def _close(self, connection: Connection, reason: str) -> None:
        self._metrics.connection_closed(reason)
        self.remove(connection)
        connection.end()

    def _connections(self) -> Iterable[Connection]:
        return (connection for group in self._by_address.values() for connection in group)

    def _count(self, change: int) -> None:
        self._num_connections += change
        self._metrics.open_connections.inc(change)


class LimitedParser(h11.Connection):
    """A parser that rejects requests with an excessive number of headers or with two lengths of the body.

    Each header and each chunk of a body takes microseconds of the event loop, whatever its size.
    """

    def __init__(self) -> None:
        super().__init__(SERVER, _MAX_HEAD_BYTES)

    def next_event(self) -> Any:
        """Return the next event. Raises h11.RemoteProtocolError."""
        if self.their_state is IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            if isinstance(self._reader, ChunkedReader):
                self._reader = LimitedChunkedReader()
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                # A proxy that uses the other header would take a part of the body for another request.
                raise h11.RemoteProtocolError("two lengths of the body")
        return event


class LimitedChunkedReader(ChunkedReader):
    """A reader of chunked bodies that limits the number of small chunks, the sizes of chunks, and trailers.

    h11 accepts a chunk of any size and waits for its data. It has no public interface for other readers.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_chunks = self._num_body_bytes = 0

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        """Return the next part of the body, if it is complete. Raises h11.RemoteProtocolError."""
        if self._reading_trailer and (rest := bytes(buf))[:1] not in (b"\r", b"\n"):
            _check_head(rest)
        event = super().__call__(buf)
        if self._bytes_in_chunk > _MAX_CHUNK_BYTES:
            raise h11.RemoteProtocolError("a chunk of the body is too large")
        if isinstance(event, h11.Data):
            self._num_chunks += 1
            self._num_body_bytes += len(event.data)
            if self._num_chunks > _NUM_SMALL_CHUNKS + self._num_body_bytes // _MIN_CHUNK_BYTES:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


def _check_head(data: bytes) -> None:
    """Raise h11.RemoteProtocolError if the headers or trailers at the start of ``data`` are too large."""
    found = _BLANK_LINE.search(data)
    end = found.start() if found else 0
    if end > _MAX_HEAD_BYTES or data.count(b"\n", 0, end) > _MAX_HEADERS:
        raise h11.RemoteProtocolError("too many headers", 431)


class ChunkWriter:
    """Writes the body of a response whose length is not known in advance (see ``BodyWriter``).

    Such a body consists of chunks in HTTP/1.1. Their encoding has no state, so h11 does not have to process
    them.
    """

    __slots__ = ("_connection", "_cycle")

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        """Whether a chunk can be written now."""
        connection, cycle = self._connection, self._cycle
        return (
            cycle.response_started
            and not cycle.response_complete
            and not cycle.disconnected
            and not connection.flow.write_paused
            and not connection.transport.is_closing()
            and isinstance(connection.conn._writer, ChunkedWriter)
            and cycle.scope["method"] != "HEAD"
        )

    def write(self, data: bytes) -> None:
        """Write a chunk."""
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class Connection(H11Protocol):
    """A client's connection. ``wait`` is what its client has to do next, since ``waiting_since``.

    ``wait`` is None while the server processes a request.
    """

    def __init__(self, *args: Any, guard: ConnectionGuard, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.conn = LimitedParser()
        self._guard = guard
        self._is_rejected = False
        self._waited_request: object = None  # the request or response that the client has to continue
        self._num_unread_bytes = 0  # unsent data when the client last made progress
        self._unparsed = b""  # received data that waits for a turn
        self.address: str | None = None
        self.wait: Wait | None = Wait.HEADER
        self.waiting_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = client_of(self.client)
        self.waiting_since = self.loop.time()
        self._guard.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.remove(self)
        if self.cycle is not None:
            abandon_request(self.cycle.scope)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_rejected:
            return
        is_waiting = bool(self._unparsed)
        self._unparsed += data
        if not is_waiting and not self._guard.parse_turns.take(self.address, self._parse, self.loop):
            self.transport.pause_reading()

    def _parse(self) -> None:
        data, self._unparsed = self._unparsed, b""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not (self.flow.read_paused or self.transport.is_closing() or self.transport.is_reading()):
            self.transport.resume_reading()

    def handle_events(self) -> None:
        """Process the received data. A request that begins gets a writer for its response."""
        super().handle_events()
        if self.cycle is not None:
            add_body_writer(cast(Scope, self.cycle.scope), ChunkWriter(self, self.cycle))

    def send_400_response(self, msg: str) -> None:
        """Reject an invalid request. If the response to it has begun, close the connection instead."""
        self._guard.count_invalid()
        if self.conn.our_state in (IDLE, SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.observe(self.loop.time())
        self._guard.limit_unsent()

    def timeout_keep_alive_handler(self) -> None:
        """Do nothing, because the guard closes idle connections."""

    @property
    def num_unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    def observe(self, now: float) -> None:
        """Update ``wait`` and ``waiting_since``. ``now`` is the event loop's time."""
        wait = self._awaited()
        is_reading = wait is Wait.READ and self.num_unsent_bytes + _PROGRESS_BYTES <= self._num_unread_bytes
        if wait is not self.wait or self.cycle is not self._waited_request or is_reading:
            self.wait, self._waited_request, self.waiting_since = wait, self.cycle, now
            self._num_unread_bytes = self.num_unsent_bytes

    def end(self) -> None:
        """Close the connection now, without waiting for its client.

        If the client does not read, reset the connection. Otherwise, the kernel would keep the data that it
        has not sent for several minutes.
        """
        if self.num_unsent_bytes:
            if (tcp := self.transport.get_extra_info("socket")) is not None:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self.transport.close()

    def reject(self, response: bytes) -> None:
        """Send a complete response, ignore the request, and close the connection.

        The connection stays open for a moment, because the response would be lost if the kernel received the
        request after the connection was closed.
        """
        self._is_rejected = True
        self.transport.write(response)
        self.transport.write_eof()
        self.loop.call_later(_REJECTED_S, self.transport.abort)

    def _awaited(self) -> Wait | None:
        if self.flow.write_paused or self.transport.is_closing():
            return Wait.READ
        if self._unparsed:
            return None
        if self.cycle is None:
            return Wait.HEADER
        if not self.cycle.response_complete:
            return Wait.BODY if self.cycle.more_body else None
        if self.conn.their_state is SEND_BODY:
            return Wait.BODY  # the response did not require the whole body
        return Wait.HEADER if self.conn.trailing_data[0] else Wait.REQUEST


def _closing_order(connection: Connection) -> tuple[bool, float]:
    """Return a key that sorts idle connections first, and among them the one that has waited longest."""
    return connection.wait not in _IDLE, connection.waiting_since


def _encoded_response(error: ApiError) -> bytes:
    """Return an HTTP/1.1 response that can be sent without reading the request."""
    body = msgspec.json.encode(to_error(error, None))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error_headers(error),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.kind.status} Service Unavailable\r\n{head}\r\n".encode("ascii") + body
