"""The compose file's Valkey command and worker health check, run without Docker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from llava_cli.up.redis_process import find_redis_binary

from tests.machine_speed import scaled
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "deploy" / "worker_health.py"
PASSWORD = "sesame"


@contextmanager
def compose_redis(folder: Path) -> Iterator[str]:
    """Run the queue on a Unix socket with the compose file's arguments. Yield its URL."""
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]["redis"]
    filled = {"${LLAVA_REDIS_PASSWORD}": PASSWORD, "${LLAVA_REDIS_MAXMEMORY:-1gb}": "1gb"}
    arguments = [filled.get(word, word) for word in service["command"][1:]]
    assert not [word for word in arguments if "$" in word]
    location = ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder)]
    server = subprocess.Popen([find_redis_binary(), *arguments, *location], stdout=subprocess.DEVNULL)
    try:
        wait_until((folder / "s").exists, "the queue")
        yield f"unix://:{PASSWORD}@{folder / 's'}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def queue_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lvd-", dir="/tmp") as folder, compose_redis(Path(folder)) as url:
        yield url


def health(url: str) -> tuple[int, str]:
    """Return the exit status and the error output of the health check."""
    environment = {**os.environ, "LLAVA_REDIS_URL": url}
    done = subprocess.run(
        [sys.executable, str(HEALTH)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_worker_is_healthy_only_while_it_sends_heartbeats(queue_url: str) -> None:
    assert health(queue_url)[0] == 1
    worker = subprocess.Popen(
        [sys.executable, "-m", "llava_worker", "--model", "echo", "--redis-url", queue_url],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: health(queue_url)[0] == 0, "a healthy worker")
    finally:
        worker.terminate()
        assert worker.wait(scaled(20)) == 0
    status, complaint = health(queue_url)
    assert status == 1
    assert socket.gethostname() in complaint


def test_an_unreachable_queue_is_reported_as_unhealthy(queue_url: str) -> None:
    status, complaint = health(queue_url.replace(PASSWORD, "wrong"))
    assert status == 1
    assert "Redis is unavailable" in complaint
    assert "wrong" not in complaint
