"""Redis servers for a fleet simulation, and the resources that they have used."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from llava_cli.up.redis_process import private_redis

__all__ = ["Servers", "Usage", "running_servers"]

_START_TIMEOUT_S = 30.0


_CALLS = ("evalsha", "eval", "xread", "blpop", "ping", "info")  # commands that clients send


@dataclass(frozen=True)
class Usage:
    """The sums over all servers since their start, and the peak memory.

    ``num_calls`` counts the commands that clients sent, and ``num_commands`` also those that scripts ran.
    """

    cpu_s: float
    num_calls: int
    num_commands: int
    peak_bytes: int

    def since(self, earlier: Usage) -> Usage:
        return Usage(
            self.cpu_s - earlier.cpu_s,
            self.num_calls - earlier.num_calls,
            self.num_commands - earlier.num_commands,
            self.peak_bytes,
        )


class Servers:
    """The running servers and their URLs."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self._clients = [redis.Redis.from_url(url, socket_timeout=60) for url in urls]

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def usage(self) -> Usage:
        infos: list[dict[str, Any]] = [client.info("all") for client in self._clients]
        return Usage(
            sum(info["used_cpu_user"] + info["used_cpu_sys"] for info in infos),
            sum(info.get(f"cmdstat_{name}", {}).get("calls", 0) for info in infos for name in _CALLS),
            sum(info["total_commands_processed"] for info in infos),
            sum(info["used_memory_peak"] for info in infos),
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        for client in self._clients:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


@contextmanager
def running_servers(number: int) -> Iterator[Servers]:
    """Start private servers without persistence, and kill them at the end."""
    with ExitStack() as stack:
        urls = []
        for _ in range(number):
            program, url = stack.enter_context(private_redis())
            command = [*program.command, "--maxclients", "20000"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            urls.append(url)
        servers = Servers(urls)
        stack.callback(servers.close)
        servers.wait_until_ready()
        yield servers
