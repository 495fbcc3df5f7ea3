"""Clients of a server that only read the times in their streams, to use as little CPU time as possible.

    python -m bench.controllers.clients '{"port": 8000, "num_streams": 800, "max_tokens": 2000, ...}'

It prints "measuring" once all streams have begun, "measured" at the end of the measurement, and then a
`ClientsResult` as JSON.
"""

from __future__ import annotations

import array
import json
import re
import select
import socket
import sys
import time

import msgspec

from bench.fleet.workers import MODEL

__all__ = ["ClientsConfig", "ClientsResult"]

_START_TIMEOUT_S = 120.0
_SETTLING_S = 2.0  # time between the first token of the last stream and the measurement
_BATCH = 16  # streams that begin at the same time
_STAMP = re.compile(rb'"content":" (\d+\.\d{6})')
_READ_BYTES = 1 << 16


class ClientsConfig(msgspec.Struct, frozen=True):
    """``num_streams`` concurrent requests for ``max_tokens`` tokens each, measured for ``seconds``."""

    port: int
    num_streams: int
    max_tokens: int
    seconds: float


class ClientsResult(msgspec.Struct, frozen=True):
    """The tokens received during the measurement, and the time between their generation and their arrival.

    ``num_reads`` is the number of times that data was received. ``stream_tokens`` is the smallest and the
    largest number of tokens that a stream received.
    """

    num_tokens: int
    num_reads: int
    seconds: float
    stream_tokens: tuple[int, int]
    latency_ms: dict[str, float]


class Clients:
    """The open streams."""

    def __init__(self, config: ClientsConfig) -> None:
        self._config = config
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._tokens: dict[int, int] = {}  # received by each stream
        self._latencies_s = array.array("d")
        self._num_reads = 0

    def run(self) -> ClientsResult:
        config = self._config
        for first in range(0, config.num_streams, _BATCH):
            for number in range(first, min(first + _BATCH, config.num_streams)):
                self._open(number)
            self._read_until_begun()
        self._read(time.monotonic() + _SETTLING_S)
        self._reset()
        print("measuring", flush=True)
        began = time.monotonic()
        self._read(began + config.seconds)
        elapsed_s = time.monotonic() - began
        print("measured", flush=True)
        return ClientsResult(
            num_tokens=len(self._latencies_s),
            num_reads=self._num_reads,
            seconds=elapsed_s,
            stream_tokens=(min(self._tokens.values()), max(self._tokens.values())),
            latency_ms=_percentiles(self._latencies_s),
        )

    def _reset(self) -> None:
        self._latencies_s = array.array("d")
        self._num_reads = 0
        self._tokens = dict.fromkeys(self._tokens, 0)

    def _open(self, number: int) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"request {number}"}],
            "max_tokens": self._config.max_tokens,
            "stream": True,
        }
        payload = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(payload)}\r\n"
        connection = socket.create_connection(("127.0.0.1", self._config.port))
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + payload)
        connection.setblocking(False)
        descriptor = connection.fileno()
        self._sockets[descriptor], self._tokens[descriptor] = connection, 0
        self._poll.register(descriptor, select.EPOLLIN)

    def _read_until_begun(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while min(self._tokens.values()) == 0:
            if time.monotonic() > deadline:
                raise RuntimeError("Some streams have not begun in time.")
            self._read(time.monotonic() + 0.02)

    def _read(self, until: float) -> None:
        """Read all streams until a time (CLOCK_MONOTONIC)."""
        sockets, tokens, latencies = self._sockets, self._tokens, self._latencies_s
        while (left_s := until - time.monotonic()) > 0:
            for descriptor, _ in self._poll.poll(left_s):
                data = sockets[descriptor].recv(_READ_BYTES)
                if not data:
                    raise RuntimeError("The server closed a stream.")
                now = time.monotonic()
                self._num_reads += 1
                stamps = _STAMP.findall(data)
                tokens[descriptor] += len(stamps)
                for stamp in stamps:
                    latencies.append(now - float(stamp))


def _percentiles(seconds: array.array[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ordered[int(share * (len(ordered) - 1))], 2) for name, share in shares.items()}


if __name__ == "__main__":
    result = Clients(msgspec.json.decode(sys.argv[1], type=ClientsConfig)).run()
    print(msgspec.json.encode(result).decode(), flush=True)
